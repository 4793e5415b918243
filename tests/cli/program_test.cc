// The program as a user runs it: exit codes, one-line errors, the JSON contract, batches.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
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
        BadCase{"unknown_word_for_the_program", {"--versoin"}, 2, "did you mean --version?"},
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
        BadCase{"thirteen_tiles_in_a_short_session", {"run", kDemo, "--session-len", "512", "--image", kRoot + "/examples/03-shapes-896x672.png", "--prompt", "x"}, 2, "session_len is 512"},
        BadCase{"prompt_too_long", {"run", kDemo, "--session-len", "64", "--image", kSign, "--prompt", "x"}, 2, "session_len is 64"},
        BadCase{"cache_does_not_fit", {"run", kDemo, "--prompt", "x", "--kv-cache-tokens", "4000000000"}, 3, "does not fit"},
        BadCase{"too_many_pixels", {"run", kDemo, "--image", kSign, "--prompt", "x", "--max-image-pixels", "1000"}, 2, "1000"},
        BadCase{"several_devices", {"run", kDemo, "--prompt", "x", "--tp", "2"}, 2, "--tp is 2"},
        BadCase{"unknown_device", {"run", kDemo, "--prompt", "x", "--device", "tpu"}, 2, "tpu"},
        BadCase{"unknown_isa", {"run", kDemo, "--prompt", "x", "--isa", "neon"}, 2, "neon"},
        BadCase{"markup", {"run", kDemo, "--prompt", "x", "--markup-tokens", "img"}, 2, "ref, box, quad"},
        BadCase{"patch_limits", {"run", kDemo, "--prompt", "x", "--min-dynamic-patch", "5", "--max-dynamic-patch", "2"}, 2, "5"},
        BadCase{"stop_strings", {"run", kDemo, "--prompt", "x", "--stop", ""}, 2, "stop"},
        BadCase{"unexpected_argument", {"run", kDemo, "surplus", "--prompt", "x"}, 2, "unexpected argument \"surplus\"; did you mean --prompt \"surplus\"?"},
        BadCase{"unknown_row", {"bench", kDemo, "--only", "vit_1_tile,decode_batch_2"}, 2, "did you mean decode_batch_1?"},
        BadCase{"two_models", {"bench", kDemo, "--shape", "InternVL3-1B"}, 2, "one of them"},
        BadCase{"unknown_shape", {"bench", "--shape", "InternVL3-3B"}, 2, "did you mean InternVL3-"},
        BadCase{"doctor_unknown_model", {"doctor", "/nonexistent/model"}, 2, "/nonexistent/model"},
        BadCase{"doctor_unknown_isa", {"doctor", "--isa", "neon"}, 2, "neon"},
        BadCase{"logprobs_without_a_place", {"run", kDemo, "--prompt", "x", "--logprobs", "2"}, 2, "--logprobs needs --json"},
        BadCase{"chat_has_no_logprobs", {"chat", kDemo, "--logprobs", "2"}, 2, "unknown option --logprobs"},
        BadCase{"speed_of_a_batch", {"run", kDemo, "--input", kRoot + "/README.md", "--speed"}, 2, "--speed is for one answer"},
        BadCase{"isa_of_a_gpu", {"run", kDemo, "--prompt", "x", "--device", "cuda", "--isa", "avx2"}, 2, "--isa avx2 chooses CPU kernels"},
        BadCase{"threads_of_a_gpu", {"doctor", "--device-limits", "rtx3090", "--threads", "2"}, 2, "--threads 2 is for computing on the CPU"},
        BadCase{"plan_for_a_missing_gpu", {"plan", kDemo, "--device", "cuda:7"}, 2, "--device cuda:7: "},
        BadCase{"plan_for_two_answers", {"plan", kDemo, "--device", "cpu", "--devices", "1x24GiB"}, 2, "exclude each other"},
        BadCase{"plan_for_an_unknown_device", {"plan", kDemo, "--device", "tpu"}, 2, "expected auto, cpu, cuda or cuda:N"},
        BadCase{"plan_for_an_unknown_isa", {"plan", kDemo, "--devices", "cpu:4GiB", "--isa", "neon"}, 2, "neon"},
        BadCase{"plan_for_a_gpus_threads", {"plan", kDemo, "--devices", "1x24GiB", "--threads", "2"}, 2, "the plan is for GPUs"},
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

TEST(Program, ADirectoryWithoutPermission) {
  const std::string directory = testing::scratch_dir();
  std::filesystem::permissions(directory, std::filesystem::perms::none);
  const ProgramResult result = tessera({"run", directory, "--prompt", "x"}, {.obey_permissions = true});
  std::filesystem::permissions(directory, std::filesystem::perms::owner_all);
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.err, "tessera run: cannot open the checkpoint directory " + directory + ": Permission denied\n");
}

// Standard output on a full disk: whatever is printed, the failure is said and is the exit code.
TEST(Program, WhatCannotBeWrittenIsAFailure) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{"doctor"},
                                                  {"--help"},
                                                  {"run", "--help"},
                                                  {"tile", kSign},
                                                  {"tokenize", kDemo, "--text", "Hello"},
                                                  {"run", kDemo, "--prompt", "Hello", "-n", "2"}}) {
    std::vector<std::string> shell = {"/bin/sh", "-c", "exec \"$@\" >/dev/full", "sh", TESSERA_BINARY};
    shell.insert(shell.end(), command.begin(), command.end());
    const ProgramResult result = testing::run_program(shell);
    EXPECT_EQ(result.exit_code, 2) << command[0];
    EXPECT_EQ(result.err, "tessera: cannot write to standard output\n") << command[0];
  }
}

// What `tessera NAME --json` prints.
Json printed_json(const std::vector<std::string>& command) {
  const ProgramResult result = tessera(command);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  auto json = Json::parse(result.out.substr(0, result.out.size() - 1));
  EXPECT_TRUE(json.ok()) << result.out;
  return json.ok() ? *json : Json();
}

TEST(Doctor, JsonNamesDevicesKernelsAndReasons) {
  const Json json = printed_json({"doctor", kDemo, "--device", "cpu", "--isa", "plain", "--threads", "3", "--json"});
  const auto& devices = json.find("devices")->as_array();
  const auto cpu =
      std::find_if(devices.begin(), devices.end(), [](const Json& d) { return d.find("name")->as_string() == "cpu"; });
  ASSERT_NE(cpu, devices.end());
  EXPECT_TRUE(cpu->find("available")->as_bool());
  for (const char* fact : {"model", "instruction sets", "memory"}) EXPECT_TRUE(cpu->find("facts")->find(fact)) << fact;
  EXPECT_GT(cpu->find("limits")->find("memory_bytes")->as_int64(), 0);
  EXPECT_EQ(json.find("used")->find("kind")->as_string(), "cpu");
  EXPECT_EQ(json.find("used")->find("multiprocessors")->as_int64(), 3);
  EXPECT_EQ(json.find("dtype")->as_string(), "bf16");  // the demo's own
  EXPECT_NE(json.find("model")->as_string().find("demo"), std::string::npos);
  std::set<std::string> operators;
  for (const Json& kernel : json.find("kernels")->as_array()) {
    operators.insert(kernel.find("op")->as_string());
    EXPECT_EQ(kernel.find("kernel")->as_string(), "plain");
    EXPECT_EQ(kernel.find("reason")->as_string(), "asked for by --isa plain");
  }
  for (const char* op : {"linear bf16", "tile_attention bf16", "paged_attention bf16", "moe bf16", "norm", "sample"})
    EXPECT_EQ(operators.count(op), 1u) << op;
}

TEST(Doctor, ADataTypeOverridesTheModels) {
  const Json json = printed_json({"doctor", "InternVL3-1B", "--device", "cpu", "--dtype", "f32", "--json"});
  EXPECT_EQ(json.find("dtype")->as_string(), "f32");
  EXPECT_EQ(json.find("kernels")->as_array().at(0).find("op")->as_string(), "linear f32");
}

TEST(Bench, JsonHasTheRowsThatWereAskedForInTheirOrder) {
  const Json json = printed_json({"bench", kDemo, "--device", "cpu", "--threads", "1", "--isa", "plain", "--dtype",
                                  "f32", "--repeat", "2", "--only", "decode_batch_1,preprocess_12mpx", "--json"});
  EXPECT_EQ(json.find("machine")->find("threads")->as_int64(), 1);
  EXPECT_EQ(json.find("machine")->find("dtype")->as_string(), "f32");
  EXPECT_EQ(json.find("machine")->find("products")->as_string(), "plain");
  EXPECT_GT(json.find("probes")->find("matrix_flops")->as_double(), 0);
  EXPECT_GT(json.find("probes")->find("read_bytes_per_s")->as_double(), 0);
  const auto& rows = json.find("rows")->as_array();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].find("name")->as_string(), "decode_batch_1");
  EXPECT_EQ(rows[1].find("name")->as_string(), "preprocess_12mpx");
  for (const Json& row : rows) {
    const double minimum = row.find("minimum")->as_double(), median = row.find("median")->as_double();
    EXPECT_GT(minimum, 0);
    EXPECT_LE(minimum, median);
    EXPECT_LE(median, row.find("maximum")->as_double());
    EXPECT_EQ(row.find("unit")->as_string(), "ms");
    EXPECT_NEAR(row.find("share_of_floor")->as_double(), row.find("floor")->as_double() / median, 1e-9);
  }
}

TEST(Bench, AShapeHasRandomWeights) {
  const Json json =
      printed_json({"bench", "--shape", kDemo, "--device", "cpu", "--repeat", "1", "--only", "prefill_512", "--json"});
  EXPECT_EQ(json.find("rows")->as_array().at(0).find("name")->as_string(), "prefill_512");
  EXPECT_GT(json.find("rows")->as_array().at(0).find("floor")->as_double(), 0);
}

TEST(Run, StreamsTheAnswer) {
  const ProgramResult result = tessera({"run", kDemo, "--image", kSign, "--prompt", "Read the text."});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "Private PRIVATE\n");
  EXPECT_EQ(result.err, "");
}

TEST(Run, JsonKeepsItsContract) {
  const ProgramResult result =
      tessera({"run", kDemo, "--image", kSign, "--prompt", "Read the text.", "--json", "--logprobs", "2"});
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
  const ProgramResult result =
      tessera({"run", kDemo, "--image", kSign, "--prompt", "Read the text.", "--stop", "te PR", "--json"});
  const auto json = Json::parse(result.out.substr(0, result.out.size() - 1));
  ASSERT_TRUE(json.ok()) << result.out << result.err;
  EXPECT_EQ(json->find("text")->as_string(), "Priva");
  EXPECT_EQ(json->find("finish_reason")->as_string(), "stop");
}

TEST(Run, AnInterruptEndsTheAnswer) {
  const ProgramResult result = tessera({"run", kDemo, "--prompt", "Hello", "--ignore-eos", "-n", "3000"},
                                       {.interrupt_after = {""}});
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

TEST(Batch, ATerminalSeesHowFarItIs) {
  const std::string dir = batch_directory(kBatch);
  const ProgramResult result = tessera({"run", kDemo, "--input", dir + "/in.jsonl", "--output", dir + "/out.jsonl"}, {.terminal = true});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  for (const char* part : {"loading [", "batch [", "/2 requests", " tokens/s", " tiles/s"})
    EXPECT_NE(result.err.find(part), std::string::npos) << part << " in " << result.err;
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

// The first ends the answer; the next ends the program, also where it comes after the answer's end.
TEST(Chat, ASecondInterruptEndsTheProgram) {
  const ProgramResult result = tessera({"chat", kDemo, "--ignore-eos", "-n", "3000"}, {.input = "Hello\n", .interrupt_after = {"", "\n"}});
  EXPECT_EQ(result.exit_code, 130) << result.err;
  const ProgramResult other = tessera({"chat", kDemo, "--ignore-eos", "-n", "3000"}, {.input = "Hello\n", .interrupt_after = {""}});
  EXPECT_EQ(other.exit_code, 0) << other.err;  // one interrupt, then the end of the input
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
