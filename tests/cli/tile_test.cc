#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/tile_sizes.h"
#include "core/file.h"
#include "core/json.h"
#include "tests/support/fixtures.h"
#include "vision/decode.h"
#include "vision/tile.h"

namespace tessera::cli {
namespace {
namespace fs = std::filesystem;
using tessera::testing::fixture_path;
using tessera::testing::scratch_dir;

struct Outcome {
  int code;
  std::string out, err;
};

Outcome run_tile(const std::vector<std::string>& args) {
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  const int code = tile_command(args);
  std::string out = ::testing::internal::GetCapturedStdout();
  return {code, std::move(out), ::testing::internal::GetCapturedStderr()};
}

Image load(const std::string& path) {
  const std::string bytes = read_file(path, 1 << 26).value();
  return decode_image(std::as_bytes(std::span(bytes)), {}, ExifOrientation::kIgnore).value();
}

void expect_one_line(const std::string& text) {
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  EXPECT_EQ(text.back(), '\n');
}

TEST(TileCommand, WritesTheTilesAndPrintsTheObject) {
  const std::string picture = fixture_path("images/jpeg-896x448.jpg");
  const std::string out = scratch_dir() + "/made/on/the/way";
  const Outcome run = run_tile({picture, "--out", out, "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  expect_one_line(run.out);
  const Json object = Json::parse(run.out).value();
  std::vector<std::string> names;
  for (const auto& member : object.as_object()) names.push_back(member.first);
  EXPECT_EQ(names, (std::vector<std::string>{"width", "height", "grid", "tiles", "files"}));
  EXPECT_EQ(object.find("width")->as_int64(), 896);
  EXPECT_EQ(object.find("grid")->dump(), "[2,1]");
  EXPECT_EQ(object.find("tiles")->as_int64(), 3);

  const auto tiled = cut_tiles(load(picture), {});
  ASSERT_EQ(object.find("files")->as_array().size(), 3u);
  for (int t = 0; t < 3; ++t)
    EXPECT_EQ(load(object.find("files")->as_array()[t].as_string()).rgb, interleaved_tile(*tiled, t).rgb);
}

TEST(TileCommand, OptionsReachTheCutting) {
  const std::string picture = fixture_path("images/exif-6.jpg");  // 120 x 80, to be turned
  const Outcome plain = run_tile({picture, "--json", "--image-size", "28", "--max-dynamic-patch", "6"});
  EXPECT_EQ(plain.out, "{\"width\":120,\"height\":80,\"grid\":[3,2],\"tiles\":7,\"files\":[]}\n");
  const Outcome turned = run_tile(
      {picture, "--json", "--image-size", "28", "--max-dynamic-patch", "6", "--exif-orientation", "apply"});
  EXPECT_EQ(turned.out, "{\"width\":80,\"height\":120,\"grid\":[2,3],\"tiles\":7,\"files\":[]}\n");
  const Outcome text = run_tile({picture, "--min-dynamic-patch", "7", "--max-dynamic-patch", "7"});
  EXPECT_NE(text.out.find("2048 (256 a tile)"), std::string::npos) << text.out;
}

TEST(TileCommand, TheSheetIsAPicture) {
  const std::string sheet = scratch_dir() + "/sheet.png";
  for (const char* name : {"images/jpeg-17x1.jpg", "images/jpeg-1x1.jpg", "images/jpeg-panorama.jpg"}) {
    const Outcome run = run_tile({fixture_path(name), "--sheet", sheet});
    ASSERT_EQ(run.code, 0) << run.err;
    EXPECT_GT(load(sheet).width, 300);
  }
}

TEST(TileCommand, BadPicturesEndWithOneLineAndNoFile) {
  const Json goldens = Json::parse_file(fixture_path("images/goldens.json")).value();
  const std::string dir = scratch_dir();
  for (const Json& entry : goldens.find("bad")->as_array()) {
    const std::string path = fixture_path("images/" + entry.find("file")->as_string());
    const Outcome run = run_tile({path, "--out", dir + "/tiles", "--sheet", dir + "/sheet.png", "--json"});
    EXPECT_EQ(run.code, 2) << path;
    EXPECT_EQ(run.out, "") << path;
    expect_one_line(run.err);
    EXPECT_NE(run.err.find(path), std::string::npos) << run.err;
  }
  EXPECT_TRUE(fs::is_empty(dir));
}

TEST(TileCommand, LimitsAreOptions) {
  const std::string picture = fixture_path("images/jpeg-896x448.jpg");
  for (const std::vector<std::string>& limit : {std::vector<std::string>{"--max-image-pixels", "401407"},
                                                {"--max-image-side", "895"},
                                                {"--max-image-bytes", "1000"}}) {
    const Outcome run = run_tile({picture, limit[0], limit[1]});
    EXPECT_EQ(run.code, 2);
    EXPECT_NE(run.err.find(limit[1]), std::string::npos) << run.err;
  }
  EXPECT_EQ(run_tile({picture, "--max-image-pixels", "401408", "--max-image-side", "896"}).code, 0);
}

TEST(TileCommand, UsageErrors) {
  const std::string picture = fixture_path("images/jpeg-1x1.jpg");
  EXPECT_EQ(run_tile({}).code, 2);
  EXPECT_EQ(run_tile({picture, "--min-dynamic-patch", "13"}).code, 2);
  EXPECT_EQ(run_tile({picture, "--max-dynamic-patch", "129"}).code, 2);
  EXPECT_EQ(run_tile({picture, "--image-size", "0"}).code, 2);
  EXPECT_EQ(run_tile({"/nowhere/picture.jpg"}).code, 2);
  EXPECT_EQ(run_tile({scratch_dir()}).code, 2);  // a directory
  EXPECT_EQ(run_tile({"--sizes", picture, "--json"}).code, 2);
}

TEST(TileCommand, WhatCannotBeWrittenLeavesNothing) {
  const std::string dir = scratch_dir();
  fs::create_directories(dir + "/tile-03-thumbnail.png");  // a directory stands where a file has to go
  const Outcome run = run_tile({fixture_path("images/jpeg-896x448.jpg"), "--out", dir});
  EXPECT_EQ(run.code, 2);
  expect_one_line(run.err);
  EXPECT_NE(run.err.find("tile-03-thumbnail.png"), std::string::npos) << run.err;
  EXPECT_EQ(std::distance(fs::directory_iterator(dir), fs::directory_iterator()), 1);
}

TEST(TileSizes, AppendsTheGridToEachLine) {
  EXPECT_EQ(tile_sizes_table("896\t448\t448\t1\t12\t1\n1\t10000\t448\t1\t2\t0").value(),
            "896\t448\t448\t1\t12\t1\t2\t1\t3\n1\t10000\t448\t1\t2\t0\t1\t2\t2\n");
  EXPECT_EQ(tile_sizes_table("").value(), "");
}

TEST(TileSizes, ABadLineIsNamed) {
  const std::string good = "1\t1\t448\t1\t12\t1\n";
  for (const char* bad :
       {"1\t1\t448\t1\t12", "1\t1\t448\t1\t12\t1\t1", "0\t1\t448\t1\t12\t1", "1\t1\t448\t3\t2\t1",
        "1\t1\t448\t1\t12\t2", "x\t1\t448\t1\t12\t1", "1.5\t1\t448\t1\t12\t1", " 1\t1\t448\t1\t12\t1", "",
        "99999999999999999999\t1\t448\t1\t12\t1", "1\t1\t0\t1\t12\t1", "1\t1\t448\t0\t12\t1",
        "1 1 448 1 12 1"}) {
    const auto table = tile_sizes_table(good + good + bad + "\n");
    ASSERT_FALSE(table.ok()) << bad;
    EXPECT_EQ(table.status().message().rfind("line 3: ", 0), 0u) << table.status().message();
  }
}

}  // namespace
}  // namespace tessera::cli
