// Which rows of a step need logits decides what its last layer computes, and nothing else.

#include <gtest/gtest.h>

#include "tests/models/runner.h"
#include "tests/models/tiny_models.h"

namespace tessera::testing {
namespace {

class LogitRows : public ::testing::TestWithParam<const char*> {
 protected:
  static constexpr int64_t kVocab = 101;
  const std::vector<int32_t> prompt_ = {3, 17, 41, 5, 77, 60, 12};
  const Checkpoint checkpoint_ = random_checkpoint(tiny_config(GetParam()), 5);
  const std::unique_ptr<Backend> backend_ = open_cpu();
  Runner runner_{*backend_, checkpoint_, {.max_tokens = 64, .logit_rows = 7}};

  static void expect_row(const std::vector<float>& got, size_t row, const std::vector<float>& expected, size_t expected_row) {
    ASSERT_GE(got.size(), (row + 1) * kVocab);
    ASSERT_GE(expected.size(), (expected_row + 1) * kVocab);
    for (size_t i = 0; i < kVocab; ++i)
      ASSERT_NEAR(got[row * kVocab + i], expected[expected_row * kVocab + i], 2e-5) << "row " << row << ", id " << i;
  }
};

TEST_P(LogitRows, AreThoseOfTheWholeStep) {
  const std::vector<float> all = runner_.step_for(prompt_, {0, 1, 2, 3, 4, 5, 6});
  runner_.reset();
  // In any order, one twice: several answers begin with the same row.
  const std::vector<int32_t> wanted = {5, 6, 0, 6};
  const std::vector<float> some = runner_.step_for(prompt_, wanted);
  ASSERT_EQ(some.size(), wanted.size() * kVocab);
  for (size_t i = 0; i < wanted.size(); ++i) expect_row(some, i, all, static_cast<size_t>(wanted[i]));
}

// As many as tokens, but not the tokens.
TEST_P(LogitRows, OfOneTokenAsManyAsTokens) {
  const std::vector<float> all = runner_.step_for({3, 17}, {0, 1});
  runner_.reset();
  const std::vector<float> twice = runner_.step_for({3, 17}, {1, 1});
  expect_row(twice, 0, all, 1);
  expect_row(twice, 1, all, 1);
}

TEST_P(LogitRows, NoneLeaveKeysAndValues) {
  const std::vector<float> whole = runner_.step(prompt_, -1);
  const std::vector<float> next = runner_.step({8}, -1);
  runner_.reset();
  EXPECT_TRUE(runner_.step_for({prompt_.begin(), prompt_.end() - 2}, {}).empty());
  expect_row(runner_.step({prompt_.end() - 2, prompt_.end()}, -1), 0, whole, 0);
  expect_row(runner_.step({8}, -1), 0, next, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, LogitRows, ::testing::Values("Qwen2ForCausalLM", "Qwen3MoeForCausalLM"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tessera::testing
