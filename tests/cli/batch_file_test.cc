#include "cli/batch_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "tests/support/fixtures.h"

namespace tessera::cli {
namespace {

using Ids = std::vector<std::optional<Json>>;

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

void spit(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

const Ids kThree = {Json("a"), Json(2), std::nullopt};
const std::string kA = R"({"id":"a","text":"x"})", kB = R"({"id":2,"text":"y"})", kC = R"({"text":"z"})";

TEST(BatchFile, WritesInOrder) {
  const std::string path = testing::scratch_dir() + "/out.jsonl";
  auto file = BatchFile::open(path, kThree);
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(file->write(0, kA).ok());
  EXPECT_EQ(slurp(path), kA + "\n");  // whole lines at once, not at the end
  EXPECT_TRUE(file->write(1, kB).ok());
  EXPECT_TRUE(file->write(2, kC).ok());
  EXPECT_TRUE(file->finish(true).ok());
  EXPECT_EQ(slurp(path), kA + "\n" + kB + "\n" + kC + "\n");
}

TEST(BatchFile, ContinuesBehindATornLine) {
  const std::string path = testing::scratch_dir() + "/out.jsonl";
  spit(path, kA + "\n" + kB.substr(0, 7));
  auto file = BatchFile::open(path, kThree);
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_TRUE(file->done(0));
  EXPECT_FALSE(file->done(1));
  EXPECT_EQ(slurp(path), kA + "\n");
  EXPECT_TRUE(file->write(1, kB).ok());
  EXPECT_TRUE(file->write(2, kC).ok());
  EXPECT_TRUE(file->finish(true).ok());
  EXPECT_EQ(slurp(path), kA + "\n" + kB + "\n" + kC + "\n");
}

TEST(BatchFile, FillsAHoleLeftByAnError) {
  const std::string path = testing::scratch_dir() + "/out.jsonl";
  const std::string before = kA + "\n" + R"({"id":2,"error":{"message":"m"}})" + "\n" + kC + "\n";
  spit(path, before);
  auto file = BatchFile::open(path, kThree);
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(file->done(0) && file->done(2));
  EXPECT_FALSE(file->done(1));
  EXPECT_TRUE(file->write(1, kB).ok());
  EXPECT_EQ(slurp(path), before);  // whole until the new file is
  EXPECT_TRUE(file->finish(true).ok());
  EXPECT_EQ(slurp(path), kA + "\n" + kB + "\n" + kC + "\n");
}

TEST(BatchFile, AnotherIdIsRefused) {
  const std::string path = testing::scratch_dir() + "/out.jsonl";
  spit(path, R"({"id":"other","text":"x"})" "\n");
  auto file = BatchFile::open(path, kThree);
  ASSERT_FALSE(file.ok());
  EXPECT_NE(file.status().message().find("\"other\""), std::string::npos);
  EXPECT_NE(file.status().message().find("\"a\""), std::string::npos);
}

TEST(BatchFile, MoreLinesThanRequestsAreRefused) {
  const std::string path = testing::scratch_dir() + "/out.jsonl";
  spit(path, kA + "\n" + kB + "\n" + kC + "\n" + kC + "\n");
  EXPECT_FALSE(BatchFile::open(path, kThree).ok());
}

TEST(BatchFile, AFullDiskLeavesWholeLines) {
  // /dev/full takes nothing: the write fails, and says so.
  auto file = BatchFile::open("/dev/full", kThree);
  if (!file.ok()) return;  // a regular file is expected where one exists already: refused, also fine
  EXPECT_FALSE(file->write(0, kA).ok());
}

TEST(SplitLines, DropsBlankLinesAndCarriageReturns) {
  EXPECT_EQ(split_lines("a\r\n\n  \nb"), (std::vector<std::string>{"a", "b"}));
}

}  // namespace
}  // namespace tessera::cli
