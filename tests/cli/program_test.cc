// The program as a user runs it: exit codes, one-line errors, the JSON contract, batches.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/json.h"
#include "tests/support/fixtures.h"
#include "tests/support/program.h"

namespace tessera {
namespace {

using testing::line_count;
using testing::ProgramOptions;
using testing::ProgramResult;

const std::string kRoot = TESSERA_SOURCE_DIR;
const std::string kSign = kRoot + "/examples/07-sign-672x448.png";

ProgramResult tessera(std::vector<std::string> args, const ProgramOptions& options = {}) {
  args.insert(args.begin(), TESSERA_BINARY);
  return testing::run_program(args, options);
}

// MODEL is a path, so that the test does not depend on where the program looks for "demo".
const std::string kDemo = kRoot + "/models/demo";

std::string write_file(const std::string& name, const std::string& text) {
  const std::string path = testing::scratch_dir() + "/" + name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

struct BadCase {
  const char* name;
  std::vector<std::string> args;
  int exit_code;
  const char* message;  ///< a part of the line
};

void PrintTo(const BadCase& c, std::ostream* out) { *out << c.name; }

class BadUsage : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadUsage, IsOneLineAndItsExitCode) {
  const ProgramResult result = tessera(GetParam().args);
  EXPECT_EQ(result.exit_code, GetParam().exit_code) << result.err;
  EXPECT_EQ(line_count(result.err), 1u) << result.err;
  EXPECT_NE(result.err.find(GetParam().message), std::string::npos) << result.err;
  EXPECT_EQ(result.out, "");
}

INSTANTIATE_TEST_SUITE_P(
    Program, BadUsage,
    ::testing::Values(
        BadCase{"unknown_command", {"rnu"}, 2, "did you mean run?"},
        BadCase{"unknown_option", {"run", kDemo, "--promt", "x"}, 2, "did you mean --prompt?"},
        BadCase{"no_model", {"run", "--prompt", "x"}, 2, "MODEL"},
        BadCase{"nothing_to_do", {"run", kDemo}, 2, "--prompt"},
        BadCase{"empty_prompt", {"run", kDemo, "--prompt", ""}, 2, "--prompt is empty"},
        BadCase{"bad_utf8", {"run", kDemo, "--prompt", "a\xff"}, 2, "UTF-8 at byte 1"},
        BadCase{"temperature", {"run", kDemo, "--prompt", "x", "--temperature", "3"}, 2, "0..2"},
        BadCase{"no_such_model", {"run", "/nonexistent/model", "--prompt", "x"}, 2, "/nonexistent/model"},
        BadCase{"no_such_picture", {"run", kDemo, "--image", "/nonexistent.png", "--prompt", "x"}, 2, "/nonexistent.png"},
        BadCase{"picture_is_a_directory", {"run", kDemo, "--image", kRoot, "--prompt", "x"}, 2, "not a regular file"},
        BadCase{"no_picture_data", {"run", kDemo, "--image", kRoot + "/README.md", "--prompt", "x"}, 2, "README.md"},
        BadCase{"too_many_placeholders", {"run", kDemo, "--image", kSign, "--prompt", "<image><image>"}, 2, "2 <image>"},
        BadCase{"too_few_placeholders", {"run", kDemo, "--image", kSign, "--image", kSign, "--prompt", "<image>"}, 2, "1 <image>"},
        BadCase{"prompt_too_long", {"run", kDemo, "--session-len", "64", "--image", kSign, "--prompt", "x"}, 2, "session_len is 64"},
        BadCase{"cache_does_not_fit", {"run", kDemo, "--prompt", "x", "--kv-cache-tokens", "4000000000"}, 3, "does not fit"},
        BadCase{"too_many_pixels", {"run", kDemo, "--image", kSign, "--prompt", "x", "--max-image-pixels", "1000"}, 2, "1000"},
        BadCase{"several_devices", {"run", kDemo, "--prompt", "x", "--tp", "2"}, 2, "--tp is 2"},
        BadCase{"unknown_device", {"run", kDemo, "--prompt", "x", "--device", "tpu"}, 2, "tpu"},
        BadCase{"unknown_isa", {"run", kDemo, "--prompt", "x", "--isa", "neon"}, 2, "neon"},
        BadCase{"markup", {"run", kDemo, "--prompt", "x", "--markup-tokens", "img"}, 2, "ref, box, quad"},
        BadCase{"patch_limits", {"run", kDemo, "--prompt", "x", "--min-dynamic-patch", "5", "--max-dynamic-patch", "2"}, 2, "5"},
        BadCase{"stop_strings", {"run", kDemo, "--prompt", "x", "--stop", ""}, 2, "stop"},
        BadCase{"output_without_input", {"run", kDemo, "--prompt", "x", "--output", "y"}, 2, "--input"},
        BadCase{"no_such_input", {"run", kDemo, "--input", "/nonexistent.jsonl"}, 2, "/nonexistent.jsonl"}),
    [](const auto& info) { return info.param.name; });

TEST(Program, NoCommandIsUsageOnStderr) {
  const ProgramResult result = tessera({});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("usage: tessera"), std::string::npos);
  EXPECT_EQ(tessera({"--version"}).out, "tessera 0.1.0\n");
}

TEST(Program, EveryCommandHasHelp) {
  const std::string usage = tessera({"--help"}).out;
  for (const char* command : {"run", "chat", "serve", "plan", "doctor", "tile", "tokenize", "bench"}) {
    EXPECT_NE(usage.find(std::string("\n  ") + command), std::string::npos) << command;
    const ProgramResult help = tessera({command, "--help"});
    EXPECT_EQ(help.exit_code, 0) << command;
    EXPECT_NE(help.out.find("--help"), std::string::npos) << command;
  }
}

TEST(Run, StreamsTheAnswer) {
  const ProgramResult result = tessera({"run", kDemo, "--image", kSign, "--prompt", "Read the text."});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "Private PRIVATE\n");
  EXPECT_EQ(result.err, "");
}

TEST(Run, JsonKeepsItsContract) {
  const ProgramResult result = tessera({"run", kDemo, "--image", kSign, "--prompt", "Read the text.", "--json", "--logprobs", "2"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(line_count(result.out), 1u);
  const auto json = Json::parse(result.out.substr(0, result.out.size() - 1));
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(json->find("text")->as_string(), "Private PRIVATE");
  EXPECT_EQ(json->find("finish_reason")->as_string(), "stop");
  EXPECT_EQ(json->find("images")->dump(), R"([{"width":672,"height":448,"grid":[3,2],"tiles":7}])");
  EXPECT_EQ(json->find("image_tokens")->as_int64(), 7 * 64);
  const auto tokens = static_cast<size_t>(json->find("completion_tokens")->as_int64());
  EXPECT_EQ(json->find("token_ids")->as_array().size(), tokens);
  ASSERT_EQ(json->find("logprobs")->as_array().size(), tokens);
  EXPECT_EQ(json->find("logprobs")->as_array()[0].find("top")->as_array().size(), 2u);
  for (const char* key : {"load_s", "preprocess_s", "encode_s", "prefill_s", "decode_s"})
    EXPECT_TRUE(json->find("timings")->find(key)->is_number()) << key;
  const Json& memory = json->find("memory")->as_array().at(0);
  EXPECT_GT(memory.find("planned_bytes")->as_int64(), 0);
  EXPECT_GT(memory.find("peak_bytes")->as_int64(), 0);
}

TEST(Run, TheSameSeedGivesTheSameText) {
  const std::vector<std::string> args = {"run",    kDemo, "--prompt", "Hello there", "--temperature", "1.5", "--ignore-eos",
                                         "-n",     "24",  "--seed"};
  const auto with_seed = [&](const char* seed) {
    auto all = args;
    all.push_back(seed);
    return tessera(all).out;
  };
  EXPECT_EQ(with_seed("5"), with_seed("5"));
  EXPECT_NE(with_seed("5"), with_seed("6"));
}

TEST(Run, StopStringsEndTheAnswerAndAreLeftOut) {
  const ProgramResult result = tessera({"run", kDemo, "--image", kSign, "--prompt", "Read the text.", "--stop", "te PR", "--json"});
  const auto json = Json::parse(result.out.substr(0, result.out.size() - 1));
  ASSERT_TRUE(json.ok()) << result.out << result.err;
  EXPECT_EQ(json->find("text")->as_string(), "Priva");
  EXPECT_EQ(json->find("finish_reason")->as_string(), "stop");
}

TEST(Run, AnInterruptEndsTheAnswer) {
  const ProgramResult result = tessera({"run", kDemo, "--prompt", "Hello", "--ignore-eos", "-n", "3000"},
                                       {.interrupt_after_bytes = 1});
  EXPECT_EQ(result.exit_code, 130) << result.err;
  EXPECT_FALSE(result.out.empty());
}

const std::string kBatch =
    R"({"id":"a","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"07-sign-672x448.png"}},{"type":"text","text":"Read the text."}]}],"max_tokens":20})"
    "\n"
    R"({"id":2,"messages":[{"role":"user","content":"Hello"}],"max_tokens":4,"ignore_eos":true})"
    "\n";

// A batch file beside a copy of the picture it names.
std::string batch_directory(const std::string& text) {
  const std::string dir = testing::scratch_dir();
  std::filesystem::copy_file(kSign, dir + "/07-sign-672x448.png");
  std::ofstream(dir + "/in.jsonl", std::ios::binary) << text;
  return dir;
}

TEST(Batch, OneResultALineInOrder) {
  const std::string dir = batch_directory(kBatch);
  const ProgramResult result = tessera({"run", kDemo, "--input", dir + "/in.jsonl", "--output", dir + "/out.jsonl"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const std::string out = slurp(dir + "/out.jsonl");
  ASSERT_EQ(line_count(out), 2u);
  const auto first = Json::parse(out.substr(0, out.find('\n')));
  EXPECT_EQ(first->find("id")->as_string(), "a");
  EXPECT_EQ(first->find("text")->as_string(), "Private PRIVATE");
  const auto second = Json::parse(out.substr(out.find('\n') + 1, out.size() - out.find('\n') - 2));
  EXPECT_EQ(second->find("id")->as_int64(), 2);
  EXPECT_EQ(second->find("completion_tokens")->as_int64(), 4);
}

TEST(Batch, ABadLineGetsAnErrorAndTheRestGoOn) {
  const std::string dir = batch_directory("nonsense\n" + kBatch + R"({"id":"n","messages":[]})" + "\n" +
                                          R"({"messages":[{"role":"user","content":"x"}],"max_tokens":-1})" + "\n");
  const ProgramResult result = tessera({"run", kDemo, "--input", dir + "/in.jsonl", "--output", dir + "/out.jsonl"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("3 of 5 requests failed"), std::string::npos) << result.err;
  const std::string out = slurp(dir + "/out.jsonl");
  EXPECT_EQ(line_count(out), 5u);
  EXPECT_NE(out.find("Private PRIVATE"), std::string::npos);
  EXPECT_NE(out.find("max_tokens"), std::string::npos);
}

TEST(Batch, ARerunDoesOnlyWhatIsMissing) {
  const std::string dir = batch_directory(kBatch);
  const std::vector<std::string> command = {"run", kDemo, "--input", dir + "/in.jsonl", "--output", dir + "/out.jsonl"};
  ASSERT_EQ(tessera(command).exit_code, 0);
  const std::string whole = slurp(dir + "/out.jsonl");
  const std::string first = whole.substr(0, whole.find('\n') + 1);
  std::ofstream(dir + "/out.jsonl", std::ios::binary) << first << "{\"id\":2,\"te";
  ASSERT_EQ(tessera(command).exit_code, 0);
  const std::string again = slurp(dir + "/out.jsonl");
  EXPECT_EQ(again.substr(0, first.size()), first);  // timings and all: it was not computed again
  EXPECT_EQ(line_count(again), 2u);
}

TEST(Batch, AFullDiskKeepsWhatWasWritten) {
  std::string many;
  for (int i = 0; i < 40; ++i)
    many += R"({"id":)" + std::to_string(i) + R"(,"messages":[{"role":"user","content":"Hello"}],"max_tokens":4})" + "\n";
  const std::string dir = batch_directory(many);
  const ProgramResult result = tessera({"run", kDemo, "--input", dir + "/in.jsonl", "--output", dir + "/out.jsonl"},
                                       {.max_file_bytes = 4096});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("out.jsonl"), std::string::npos) << result.err;
  const std::string out = slurp(dir + "/out.jsonl");
  ASSERT_GE(line_count(out), 1u);
  EXPECT_EQ(out.back(), '\n');
  std::istringstream lines(out);
  for (std::string line; std::getline(lines, line);) EXPECT_TRUE(Json::parse(line).ok()) << line;
}

TEST(Chat, KeepsTheConversationAndObeysCommands) {
  const std::string saved = testing::scratch_dir() + "/talk.json";
  const ProgramResult result =
      tessera({"chat", kDemo}, {.input = "/image " + kSign + "\n/tiles 6\nRead the text.\nHow many lines of text are there?\n/save " + saved +
                                         "\n/reset\n/quit\n"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out.find("Private PRIVATE\n"), std::string::npos) << result.out;
  const auto json = Json::parse_file(saved);
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(json->find("messages")->as_array().size(), 4u);
}

TEST(Chat, AFailureIsSaidAndTheTalkGoesOn) {
  const ProgramResult result = tessera({"chat", kDemo}, {.input = "/image /nonexistent.png\n/imgae x\nHello\n"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("/nonexistent.png"), std::string::npos);
  EXPECT_NE(result.err.find("did you mean /image?"), std::string::npos);
  EXPECT_FALSE(result.out.empty());
}

}  // namespace
}  // namespace tessera
