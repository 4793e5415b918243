#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tessera/options.h"
#include "tests/models/golden_folder.h"
#include "tests/support/engine_client.h"
#include "tests/support/fixtures.h"

namespace tessera {
namespace {
namespace fs = std::filesystem;

// Every folder of the fixture set in use that has goldens and weights (the project's own choice leaves some weights out).
std::vector<std::string> golden_models() {
  std::vector<std::string> names;
  const std::string root = testing::fixture_path("models");
  if (fs::exists(root))
    for (const auto& entry : fs::directory_iterator(root))
      if (fs::exists(entry.path() / "golden.json") &&
          (fs::exists(entry.path() / "model.safetensors") || fs::exists(entry.path() / "model.safetensors.index.json")))
        names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::unique_ptr<Engine> open(const std::string& directory, const std::string& dtype) {
  EngineOptions options;
  options.model = directory;
  testing::use_test_device(options);
  options.dtype = dtype;
  options.session_len = 2048;
  options.max_batch_size = 4;
  auto [engine, status] = open_engine(options);
  EXPECT_TRUE(status.ok()) << status.message();
  return std::move(engine);
}

std::vector<int32_t> ids_of(const Json& list) {
  std::vector<int32_t> ids;
  for (const Json& id : list.as_array()) ids.push_back(static_cast<int32_t>(id.as_int64()));
  return ids;
}

// The logprob that `got` reports for `id`, or NaN.
double logprob_of(const TokenLogprob& got, int32_t id) {
  for (const auto& [candidate, value] : got.top)
    if (candidate == id) return value;
  return std::nan("");
}

struct LogprobDifference {
  double largest = 0, sum_of_squares = 0;
  int count = 0;
  double rms() const { return count ? std::sqrt(sum_of_squares / count) : 0; }
};

// Compares the reference's five best of each step, as long as both sides took the same path. Where rounding swapped the
// fifth and sixth, the id is not among ours and says nothing.
LogprobDifference compare_logprobs(const Json& golden, const testing::Recorder::Answer& answer) {
  LogprobDifference difference;
  const auto expected = ids_of(*golden.find("greedy_ids"));
  const auto& steps = golden.find("top_logprobs")->as_array();
  for (size_t step = 0; step < answer.logprobs.size() && step < steps.size(); ++step) {
    for (const Json& pair : steps[step].as_array()) {
      const double ours = logprob_of(answer.logprobs[step], static_cast<int32_t>(pair.as_array()[0].as_int64()));
      if (std::isnan(ours)) continue;
      const double d = std::abs(ours - pair.as_array()[1].as_double());
      difference.largest = std::max(difference.largest, d);
      difference.sum_of_squares += d * d;
      ++difference.count;
    }
    if (answer.ids[step] != expected[step]) break;
  }
  return difference;
}

void check_prompt(const Json& golden, const PromptInfo& prompt) {
  EXPECT_EQ(prompt.prompt_tokens, golden.find("prompt_tokens")->as_int64());
  EXPECT_EQ(prompt.image_tokens, golden.find("image_tokens")->as_int64());
  const auto& tiles = golden.find("tiles")->as_array();
  ASSERT_EQ(prompt.images.size(), tiles.size());
  for (size_t i = 0; i < tiles.size(); ++i) {
    EXPECT_EQ(prompt.images[i].tiles, tiles[i].as_int64());
    EXPECT_EQ(prompt.images[i].columns, golden.find("grid")->as_array()[i].as_array()[0].as_int64());
    EXPECT_EQ(prompt.images[i].rows, golden.find("grid")->as_array()[i].as_array()[1].as_int64());
  }
}

class Golden : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (loaded_.empty()) GTEST_SKIP() << "the weights of " << GetParam() << " are not in this set of fixtures";
  }
  std::string directory() const { return testing::fixture_path("models/" + GetParam()); }
  Json goldens() const { return *Json::parse_file(directory() + "/golden.json"); }

  const std::string loaded_ = testing::golden_folder(GetParam());  ///< with weights
};

// A float32 engine on the (upcast) weights gives the reference's grids, counts, ids and text in every case, and its
// logprobs within 1e-3 (fixtures/models/README.md).
TEST_P(Golden, Float32IsTheReference) {
  const auto engine = open(loaded_, "f32");
  ASSERT_TRUE(engine);
  const Json goldens_ = goldens();
  for (const Json& golden : goldens_.find("cases")->as_array()) {
    SCOPED_TRACE(golden.find("name")->as_string());
    const Request request = testing::golden_request(golden, directory());
    EXPECT_EQ(engine->tokenize(request).first, ids_of(*golden.find("prompt_ids")));
    const auto heard = testing::ask(*engine, request);
    const auto& answer = heard->answer();
    ASSERT_TRUE(answer.finish.status.ok()) << answer.finish.status.message();
    check_prompt(golden, heard->prompt());
    EXPECT_EQ(answer.ids, ids_of(*golden.find("greedy_ids")));
    EXPECT_EQ(answer.text, golden.find("text")->as_string());
    EXPECT_EQ(answer.finish.reason == FinishReason::kStop, golden.find("finish_reason")->as_string() == "stop");
    EXPECT_LT(compare_logprobs(golden, answer).largest, 1e-3);
  }
}

// bf16 arithmetic may part from the reference where its two best are near; before that logprobs stay within 2.5, and
// within 0.6 rms over a case.
TEST_P(Golden, Bfloat16StaysWithinItsRounding) {
  const auto engine = open(loaded_, "bf16");
  ASSERT_TRUE(engine);
  const Json goldens_ = goldens();
  for (const Json& golden : goldens_.find("cases")->as_array()) {
    SCOPED_TRACE(golden.find("name")->as_string());
    const auto heard = testing::ask(*engine, testing::golden_request(golden, directory()));
    ASSERT_TRUE(heard->answer().finish.status.ok()) << heard->answer().finish.status.message();
    const LogprobDifference difference = compare_logprobs(golden, heard->answer());
    EXPECT_GT(difference.count, 0);
    EXPECT_LT(difference.largest, 2.5);
    EXPECT_LT(difference.rms(), 0.6);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Golden, ::testing::ValuesIn(golden_models()), [](const auto& info) {
  std::string name = info.param;
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
});
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Golden);

// The demo model's own answers to the questions it is known to answer right, the same on every device.
class Demo : public ::testing::TestWithParam<const char*> {};

TEST_P(Demo, AnswersItsPictures) {
  const std::string root = TESSERA_SOURCE_DIR;
  auto pictures = Json::parse_file(root + "/examples/pictures.json");
  ASSERT_TRUE(pictures.ok()) << pictures.status().message();
  const auto engine = open(root + "/models/demo", GetParam());
  ASSERT_TRUE(engine);
  for (const Json& picture : pictures->as_array()) {
    const std::string file = root + "/examples/" + picture.find("file")->as_string();
    for (const Json& question : picture.find("questions")->as_array()) {
      SCOPED_TRACE(file + ": " + question.find("question")->as_string());
      Json turn = *Json::parse(R"({"messages":[{"role":"user","content":[]}],"max_new_tokens":100})");
      Json image, text;
      image.set("image_url", Json::Object{{"url", Json(file.substr(root.size() + 1))}});
      text.set("text", question.find("question")->as_string());
      turn.as_object()[0].second.as_array()[0].as_object()[1].second = Json::Array{image, text};
      const auto heard = testing::ask(*engine, testing::golden_request(turn, root));
      EXPECT_EQ(heard->answer().text, question.find("answer")->as_string());
      EXPECT_EQ(heard->prompt().images.at(0).tiles, picture.find("tiles")->as_int64());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Demo, ::testing::Values("bf16", "f32"));

}  // namespace
}  // namespace tessera
