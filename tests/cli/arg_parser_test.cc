#include "cli/arg_parser.h"

#include <gtest/gtest.h>

namespace tessera::cli {
namespace {

struct Parsed {
  std::optional<int> code;
  std::string out, err;
};

Parsed parse(ArgParser& parser, const std::vector<std::string>& args) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Parsed parsed;
  parsed.code = parser.parse(args);
  parsed.out = testing::internal::GetCapturedStdout();
  parsed.err = testing::internal::GetCapturedStderr();
  return parsed;
}

TEST(ArgParser, UnknownOptionNamesTheNearest) {
  ArgParser parser("tessera run", "d");
  std::string model;
  int64_t top_k = 0;
  parser.positional("MODEL", &model, "m");
  parser.option("--top-k", &top_k, 0, 100, "k");
  const Parsed parsed = parse(parser, {"--topk", "5"});
  EXPECT_EQ(parsed.code, 2);
  EXPECT_EQ(parsed.err, "tessera run: unknown option --topk; did you mean --top-k? (see --help)\n");
}

TEST(ArgParser, OutOfRangeSaysValueAndRange) {
  ArgParser parser("tessera run", "d");
  int64_t top_k = 0;
  parser.option("--top-k", &top_k, 0, 100, "k");
  const Parsed parsed = parse(parser, {"--top-k", "101"});
  EXPECT_EQ(parsed.code, 2);
  EXPECT_NE(parsed.err.find("--top-k"), std::string::npos);
  EXPECT_NE(parsed.err.find("101"), std::string::npos);
  EXPECT_NE(parsed.err.find("0..100"), std::string::npos);
}

TEST(ArgParser, AValueThatIsMissingOrGivenTwice) {
  for (const std::vector<std::string>& args : {std::vector<std::string>{"--prompt", "a", "--prompt", "b"}, {"--prompt"}}) {
    ArgParser parser("tessera run", "d");
    std::optional<std::string> prompt;
    parser.option("--prompt", &prompt, "p");
    const Parsed parsed = parse(parser, args);
    EXPECT_EQ(parsed.code, 2);
    EXPECT_EQ(parsed.err, "tessera run: --prompt needs one value, and once (see --help)\n");
  }
}

TEST(ArgParser, RepeatedListTakesOneValueEach) {
  ArgParser parser("tessera run", "d");
  std::string model;
  std::vector<std::string> images;
  parser.positional("MODEL", &model, "m");
  parser.list("--image", &images, "i");
  EXPECT_EQ(parse(parser, {"--image", "a", "demo", "--image", "b"}).code, std::nullopt);
  EXPECT_EQ(images, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(model, "demo");
}

TEST(ArgParser, HelpShowsRangesAndDefaults) {
  ArgParser parser("tessera run", "d");
  int64_t top_k = 7;
  parser.option("--top-k", &top_k, 0, 100, "k");
  const Parsed parsed = parse(parser, {"--help"});
  EXPECT_EQ(parsed.code, 0);
  EXPECT_NE(parsed.out.find("7"), std::string::npos);
  EXPECT_NE(parsed.out.find("0..100"), std::string::npos);
}

TEST(ArgParser, BytesTakeUnits) {
  ArgParser parser("tessera run", "d");
  std::optional<int64_t> bytes;
  parser.bytes("--limit", &bytes, "b");
  EXPECT_EQ(parse(parser, {"--limit", "1.5GiB"}).code, std::nullopt);
  EXPECT_EQ(*bytes, int64_t{3} << 29);
  const Parsed bad = parse(parser, {"--limit", "12XB"});
  EXPECT_EQ(bad.code, 2);
  EXPECT_NE(bad.err.find("12XB"), std::string::npos) << bad.err;
}

TEST(NearestWord, FarWordsAreNoHelp) {
  EXPECT_EQ(nearest_word("--tpo-k", {"--top-k", "--top-p"}), "--top-k");
  EXPECT_EQ(nearest_word("serve", {"run", "tile"}), "");
  EXPECT_EQ(nearest_word("--url", {"--help", "--json"}), "");
}

}  // namespace
}  // namespace tessera::cli
