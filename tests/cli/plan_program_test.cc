// `tessera plan` as a user runs it: what it suggests, taken at its word, fits.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "core/json.h"
#include "tests/support/program.h"

namespace tessera {
namespace {

struct PlanCase {
  const char* name;
  std::string devices;
  std::vector<std::string> args;  ///< MODEL and settings
};

void PrintTo(const PlanCase& c, std::ostream* out) { *out << c.name; }

testing::ProgramResult plan(const std::string& devices, const std::vector<std::string>& args) {
  std::vector<std::string> command{TESSERA_BINARY, "plan", "--json", "--devices", devices};
  command.insert(command.end(), args.begin(), args.end());
  return testing::run_program(command);
}

// "2x24GiB,1x80GiB" with none below `gibibytes`.
std::string raised(const std::string& devices, int gibibytes) {
  std::istringstream in(devices);
  std::ostringstream out;
  for (std::string part; std::getline(in, part, ',');) {
    const size_t size = part.find_first_of("x:") + 1;
    const int before = part.find("GiB") == std::string::npos ? 0 : std::atoi(part.c_str() + size);
    out << (out.tellp() > 0 ? "," : "") << part.substr(0, size) << std::max(before, gibibytes) << "GiB";
  }
  return out.str();
}

// The devices and settings that a suggestion's words ask for.
void apply(const std::string& suggestion, std::string& devices, std::vector<std::string>& args) {
  std::istringstream in(suggestion);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  const auto drop = [&](const std::string& option) {
    for (size_t i = 0; i + 1 < args.size(); ++i)
      if (args[i] == option)
        args.erase(args.begin() + static_cast<std::ptrdiff_t>(i), args.begin() + static_cast<std::ptrdiff_t>(i) + 2);
  };
  const std::string one = devices.substr(devices.find('x') + 1);
  if (words[0] == "devices") {  // "devices of 22GiB"; "devices of at least 30GiB" where some are larger
    devices = raised(devices, std::atoi(words.back().c_str()));
    return;
  }
  if (words.size() > 1 && words[1] == "such") {  // "5 such devices"
    devices = words[0] + "x" + one;
    return;
  }
  if (words[0] == "no") return drop(words[1]);
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "on") {  // "--tp 2 on 2 such devices"
      devices = words[i + 1] + "x" + one;
      return;
    }
    if (words[i] == "in") return drop("--tp");  // "--layer-split in place of --tp"
    if (words[i].rfind("--", 0) == 0) drop(words[i]);
    args.push_back(words[i]);
  }
}

// Each thread has a workspace of its own: a plan for other threads than the run's would not be the run's plan.
TEST(PlanCommand, CountsTheThreadsThatWereAskedFor) {
  const std::string demo = std::string(TESSERA_SOURCE_DIR) + "/models/demo";
  const auto total = [&](const std::vector<std::string>& args) {
    std::vector<std::string> command{TESSERA_BINARY, "plan", demo, "--json"};
    command.insert(command.end(), args.begin(), args.end());
    const auto result = testing::run_program(command);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return Json::parse(result.out)->find("devices")->as_array().at(0).find("total_bytes")->as_int64();
  };
  const auto run = testing::run_program(
      {TESSERA_BINARY, "run", demo, "--device", "cpu", "--threads", "3", "--prompt", "x", "-n", "1", "--json"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json memory = Json::parse(run.out.substr(0, run.out.size() - 1))->find("memory")->as_array().at(0);
  EXPECT_EQ(total({"--device", "cpu", "--threads", "3"}), memory.find("planned_bytes")->as_int64());
  EXPECT_EQ(total({"--devices", "cpu:16GiB", "--threads", "3"}), memory.find("planned_bytes")->as_int64());
}

class Suggestions : public ::testing::TestWithParam<PlanCase> {};

TEST_P(Suggestions, EachFitsWhenItIsFollowed) {
  const PlanCase& c = GetParam();
  const auto refused = plan(c.devices, c.args);
  ASSERT_EQ(refused.exit_code, 3) << refused.out << refused.err;
  const auto json = Json::parse(refused.out);
  ASSERT_TRUE(json.ok()) << "JSON is printed with exit 3, too";
  EXPECT_FALSE(json->find("fits")->as_bool());
  const auto& suggestions = json->find("suggestions")->as_array();
  ASSERT_FALSE(suggestions.empty());
  for (const Json& suggestion : suggestions) {
    std::string devices = c.devices;
    std::vector<std::string> args = c.args;
    apply(suggestion.as_string(), devices, args);
    const auto followed = plan(devices, args);
    EXPECT_EQ(followed.exit_code, 0) << suggestion.as_string() << "\n" << followed.out << followed.err;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Plan, Suggestions,
    ::testing::Values(PlanCase{"small_cache", "1x17GiB", {"InternVL2-8B"}},
                      PlanCase{"weights_too_large", "1x16GiB", {"InternVL2-8B"}},
                      PlanCase{"four_small_cards", "4x5GiB", {"InternVL2-8B", "--tp", "4"}},
                      PlanCase{"idle_cards", "2x12GiB", {"InternVL2-8B"}},
                      PlanCase{"cache_said_outright", "1x24GiB", {"InternVL2-8B", "--kv-cache-tokens", "100000"}},
                      PlanCase{"cpu", "cpu:2300MiB", {"InternVL2_5-1B"}},
                      PlanCase{"large_model", "4x40GiB", {"InternVL3-78B", "--tp", "4"}},
                      PlanCase{"large_pictures", "1x17GiB", {"InternVL2-8B", "--max-dynamic-patch", "40"}},
                      PlanCase{"layers_split", "3x8GiB", {"InternVL3-14B", "--layer-split"}},
                      PlanCase{"mixed_cards", "2x24GiB,1x30GiB", {"InternVL3-38B", "--layer-split"}}),
    [](const auto& info) { return info.param.name; });

// The example of docs/engine.md is what the program says: the command in the page is run.
TEST(PlanExample, TheEnginesContractShowsWhatIsPrinted) {
  std::ifstream page(std::string(TESSERA_SOURCE_DIR) + "/docs/engine.md");
  std::string line, shown;
  std::vector<std::string> command;
  while (std::getline(page, line) && command.empty())
    if (line.rfind("`tessera plan ", 0) == 0) {
      std::istringstream words(line.substr(9, line.find('`', 1) - 9));
      for (std::string word; words >> word;) command.push_back(word);
    }
  ASSERT_FALSE(command.empty()) << "the page has lost its example";
  while (std::getline(page, line) && line != "```text") continue;
  while (std::getline(page, line) && line != "```") shown += line + "\n";
  ASSERT_GT(shown.size(), 500u);
  command.insert(command.begin(), TESSERA_BINARY);
  const auto printed = testing::run_program(command);
  EXPECT_EQ(printed.exit_code, 0) << printed.err;
  EXPECT_NE(printed.out.find(shown), std::string::npos) << "docs/engine.md is to show:\n" << printed.out;
}

}  // namespace
}  // namespace tessera
