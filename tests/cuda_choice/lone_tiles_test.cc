#include "backends/cuda_choice/lone_tiles.h"

#include <gtest/gtest.h>

namespace tessera::cuda {
namespace {

const DeviceLimits kHopper{.multiprocessors = 132};

TEST(LoneTiles, ARowThatWholeBlocksLeaveOverRides) {
  const LoneTiles fc1 = lone_tiles(kLoneLinear, kHopper, 1025, 4096);
  EXPECT_EQ(fc1.pairs, 4);
  EXPECT_EQ(fc1.columns, 16);
  EXPECT_EQ(fc1.riders, 1);
  EXPECT_TRUE(fc1.at_once);
  EXPECT_DOUBLE_EQ(fc1.share, 128.0 / 132);
  const LoneTiles projection = lone_tiles(kLoneStream, kHopper, 1025, 1024);
  EXPECT_EQ(projection.pairs * projection.columns, 64);
  EXPECT_EQ(projection.riders, 1);
  EXPECT_EQ(lone_tiles(kLoneLinear, kHopper, 1026, 4096).riders, 2);
}

TEST(LoneTiles, MoreRowsMakeABlock) {
  const LoneTiles three = lone_tiles(kLoneLinear, kHopper, 1027, 4096);
  EXPECT_EQ(three.riders, 0);
  EXPECT_EQ(three.pairs, 5);
  EXPECT_FALSE(three.at_once);
  EXPECT_EQ(lone_tiles(kLoneLinear, kHopper, 1024, 4096).riders, 0);
}

TEST(LoneTiles, SoDoRowsThatTooFewBlocksWouldShare) {
  const LoneTiles few = lone_tiles(kLoneLinear, kHopper, 7 * 128 + 1, 3072);
  EXPECT_EQ(few.riders, 0);
  EXPECT_EQ(few.pairs, 4);
  EXPECT_EQ(lone_tiles(kLoneStream, kHopper, 15 * 64 + 1, 1024).riders, 0);
}

TEST(LoneTiles, AnOddBlockOfRowsIsNoUseOfItsPair) {
  const LoneTiles odd = lone_tiles(kLoneLinear, kHopper, 640, 4608);
  EXPECT_EQ(odd.pairs, 3);
  EXPECT_TRUE(odd.at_once);
  EXPECT_DOUBLE_EQ(odd.share, 90.0 / 132);
}

TEST(LoneTiles, AnUnknownDeviceRunsNothingAtOnce) { EXPECT_FALSE(lone_tiles(kLoneLinear, {}, 1025, 4096).at_once); }

}  // namespace
}  // namespace tessera::cuda
