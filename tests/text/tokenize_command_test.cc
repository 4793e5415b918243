#include <gtest/gtest.h>

#include "cli/commands.h"
#include "tests/support/fixtures.h"
#include "tests/text/text_fixtures.h"

namespace tessera {
namespace {

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

Outcome tokenize(std::vector<std::string> args) {
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  const int code = cli::tokenize_command(args);
  std::fflush(stdout);
  return {code, ::testing::internal::GetCapturedStdout(), ::testing::internal::GetCapturedStderr()};
}

class TokenizeCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = testing::scratch_dir();
    testing::write_file(model_ + "/tokenizer.json", testing::small_tokenizer_json().dump());
  }
  Outcome with_input(const std::string& lines, std::vector<std::string> more = {"--json"}) {
    path_ = model_ + "/in.jsonl";
    testing::write_file(path_, lines);
    more.insert(more.begin(), {model_, "--input", path_});
    return tokenize(more);
  }
  std::string model_, path_;
};

TEST_F(TokenizeCommand, TextsAndIds) {
  const Outcome run = with_input("{\"text\": \"abc\"}\n{\"ids\": [256, 195, 260, 169, 228]}\n{\"text\":\"\"}\n");
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.out, "{\"ids\":[257],\"text\":\"abc\"}\n"
                     "{\"ids\":[256,195,260,169,228],\"text\":\"ab\xC3\xA9\xEF\xBF\xBD\","
                     "\"pieces\":[\"ab\",\"\",\"\",\"\xC3\xA9\",\"\",\"\xEF\xBF\xBD\"]}\n"
                     "{\"ids\":[],\"text\":\"\"}\n");
}

TEST_F(TokenizeCommand, SpecialTextOnlyWhenAskedFor) {
  EXPECT_EQ(tokenize({model_, "--text", "ab<|end|>", "--json", "--parse-special"}).out, "{\"ids\":[256,260],\"text\":\"ab\"}\n");
  EXPECT_NE(tokenize({model_, "--text", "<|end|>", "--json"}).out.find("<|end|>"), std::string::npos);
  EXPECT_EQ(tokenize({model_, "--text", "ab<|end|>", "--parse-special"}).out,
            "     256  \"ab\"\n     260  \"<|end|>\"  control\n2 tokens\n");
}

TEST_F(TokenizeCommand, UnpairedSurrogatesCountAsReplacementCharacters) {
  EXPECT_EQ(with_input("{\"text\": \"\\ud800\"}").out, "{\"ids\":[239,191,189],\"text\":\"\xEF\xBF\xBD\"}\n");
}

TEST_F(TokenizeCommand, BadLinesAreNamed) {
  for (const char* line : {"", "{", "[]", "7", "{}", "{\"text\": 5}", "{\"ids\": 5}", "{\"text\": \"a\", \"ids\": []}",
                           "{\"text\": \"a\", \"other\": 1}", "{\"text\": \"\xFF\"}", "{\"ids\": [\"a\"]}", "{\"ids\": [1.5]}",
                           "{\"ids\": [-1]}", "{\"ids\": [262]}", "{\"ids\": [4294967296]}"}) {
    const Outcome run = with_input(std::string("{\"text\": \"a\"}\n") + line + "\n{\"text\": \"b\"}\n");
    EXPECT_EQ(run.code, 2) << line;
    EXPECT_NE(run.err.find(path_ + ", line 2: "), std::string::npos) << run.err;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }
  EXPECT_EQ(with_input("{\"ids\": [262]}").err,
            "tessera tokenize: " + path_ + ", line 1: id 262 is no token; expected ids of 0..261\n");
}

TEST_F(TokenizeCommand, BadUsage) {
  EXPECT_EQ(tokenize({model_}).code, 2);
  EXPECT_EQ(tokenize({model_, "--text", "a", "--input", "b"}).code, 2);
  EXPECT_EQ(tokenize({model_, "--text", "\xFF"}).code, 2);
  EXPECT_EQ(tokenize({model_, "--input", model_ + "/absent"}).code, 2);
  EXPECT_EQ(tokenize({model_ + "/absent", "--text", "a"}).code, 2);
  EXPECT_EQ(tokenize({model_, "--text", "a", "--parse-specials"}).code, 2);
}

}  // namespace
}  // namespace tessera
