#include "cli/batch_lines.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/fixtures.h"

namespace tessera::cli {
namespace {

std::vector<std::string> lines_of(const std::string& text) {
  const std::string path = testing::scratch_dir() + "/lines.jsonl";
  std::ofstream(path, std::ios::binary) << text;
  const auto lines = BatchLines::open(path);
  EXPECT_TRUE(lines.ok()) << lines.status().message();
  std::vector<std::string> out;
  for (size_t i = lines->size(); i-- > 0;) out.insert(out.begin(), lines->read(i).value());  // in any order
  return out;
}

TEST(BatchLines, DropsBlankLinesAndCarriageReturns) {
  EXPECT_EQ(lines_of("a\r\n\n  \n\r\nb\nc"), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(lines_of("\n\nlast\r\n"), std::vector<std::string>{"last"});
  EXPECT_TRUE(lines_of("").empty());
}

TEST(BatchLines, LinesMayBeLongerThanAPiece) {
  const std::string large(3 << 20, 'x');
  EXPECT_EQ(lines_of("a\n" + large + "\r\nb"), (std::vector<std::string>{"a", large, "b"}));
}

TEST(BatchLines, AMissingFileIsNamed) {
  const Status status = BatchLines::open("/nowhere/requests.jsonl").status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidInput);
  EXPECT_NE(status.message().find("/nowhere/requests.jsonl"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace tessera::cli
