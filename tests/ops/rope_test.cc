#include "ops/rope.h"

#include <cmath>

#include "tests/ops/op_test.h"

namespace tessera::testing {
namespace {

TEST(RopeFrequencies, PlainFollowsTheFormula) {
  const RopeParams params{.head_dim = 64, .base = 1000000};
  const std::vector<float> f = rope_inverse_frequencies(params, 100000);
  ASSERT_EQ(f.size(), 32u);
  for (size_t i = 0; i < 32; ++i) EXPECT_NEAR(f[i], std::pow(1e6, -2.0 * static_cast<double>(i) / 64), 1e-6 * f[i]);
  EXPECT_EQ(rope_class(params, 100000), 0);
}

TEST(RopeFrequencies, DynamicNtkGrowsTheBasePastTheLimit) {
  const RopeParams params{.kind = RopeKind::kDynamicNtk, .head_dim = 128, .base = 1e6, .factor = 2, .max_position = 1000};
  EXPECT_EQ(rope_class(params, 1000), 0);
  EXPECT_EQ(rope_inverse_frequencies(params, 1000), rope_inverse_frequencies(params, 1));
  EXPECT_NE(rope_class(params, 1001), rope_class(params, 1002));
  const double base = 1e6 * std::pow(2 * 1500.0 / 1000 - 1, 128.0 / 126);
  const std::vector<float> f = rope_inverse_frequencies(params, 1500);
  for (size_t i = 0; i < 64; ++i) EXPECT_NEAR(f[i], std::pow(base, -2.0 * static_cast<double>(i) / 128), 2e-6 * f[i]);
}

TEST(RopeFrequencies, LongRopeSwitchesFactors) {
  const RopeParams params{.kind = RopeKind::kLongRope,
                          .head_dim = 4,
                          .base = 10000,
                          .original_max_position = 16,
                          .short_factors = {1, 2},
                          .long_factors = {4, 8}};
  EXPECT_EQ(rope_class(params, 16), 0);
  EXPECT_EQ(rope_class(params, 17), rope_class(params, 999));
  EXPECT_NE(rope_class(params, 17), 0);
  EXPECT_FLOAT_EQ(rope_inverse_frequencies(params, 16)[1], 1.0f / (2 * 100));
  EXPECT_FLOAT_EQ(rope_inverse_frequencies(params, 17)[1], 1.0f / (8 * 100));
  RopeParams broken = params;
  broken.long_factors = {1};
  EXPECT_THROW(rope_inverse_frequencies(broken, 17), CheckFailure);
}

class RopeAnglesTest : public OpTest {};

TEST_P(RopeAnglesTest, MatchesTheFrequenciesOfEachToken) {
  Device d = device();
  const RopeParams params{.kind = RopeKind::kDynamicNtk, .head_dim = 32, .base = 10000, .factor = 3, .max_position = 50, .attention_scale = 1.25f};
  const std::vector<int32_t> positions = {0, 7, 49, 50, 51, 3000}, lengths = {50, 50, 50, 51, 60, 3001};
  const Tensor out = d.make(DType::kF32, {6, 32});
  rope_angles(d.context(), {.params = &params, .positions = d.upload_ints(positions), .rope_lengths = d.upload_ints(lengths), .out = out});
  const Matrix got = d.download(out);
  for (int64_t t = 0; t < 6; ++t) {
    const std::vector<float> f = rope_inverse_frequencies(params, lengths[static_cast<size_t>(t)]);
    for (int64_t i = 0; i < 16; ++i) {
      // The angle is a product in float32, as in the reference: it is the definition, so only cos and sin may differ.
      const float angle = static_cast<float>(positions[static_cast<size_t>(t)]) * f[static_cast<size_t>(i)];
      EXPECT_NEAR(got.at(t, i), 1.25 * std::cos(static_cast<double>(angle)), 4e-7);
      EXPECT_NEAR(got.at(t, i + 16), 1.25 * std::sin(static_cast<double>(angle)), 4e-7);
    }
  }
}

TESSERA_OP_SUITE(RopeAnglesTest);

}  // namespace
}  // namespace tessera::testing
