#include "backends/cuda_choice/wgmma_rounds.h"

#include <gtest/gtest.h>

namespace tessera::cuda {
namespace {

const DeviceLimits kHopper{.multiprocessors = 132};  // 66 clusters of two

TEST(WgmmaRounds, FullRoundsStayWhole) {
  const WgmmaRounds r = wgmma_rounds(kHopper, 66 * 256, 256, 1024);
  EXPECT_EQ(r.tiles(), 66);
  EXPECT_EQ(r.whole, 66);
  EXPECT_DOUBLE_EQ(r.time(), 1.0);
  EXPECT_DOUBLE_EQ(r.share(), 1.0);
}

TEST(WgmmaRounds, AMostlyEmptyLastRoundIsSplitAlongK) {
  const WgmmaRounds r = wgmma_rounds(kHopper, 13 * 1025, 1024, 4096);  // 52 x 4 tall tiles, 2 wide ones: three rounds and 12 tiles
  EXPECT_EQ(r.tiles(), 210);
  EXPECT_EQ(r.whole, 198);
  EXPECT_EQ(r.parts, 4);
  EXPECT_EQ(r.units(), 198 + 48);
  EXPECT_DOUBLE_EQ(r.time(), 3.25 + kWgmmaExchange / 64);
}

TEST(WgmmaRounds, AFullerLastRoundIsNot) {
  const WgmmaRounds r = wgmma_rounds(kHopper, 7 * 1025, 1024, 4096);  // 66 + 48 tiles
  EXPECT_EQ(r.whole, r.tiles());
  EXPECT_DOUBLE_EQ(r.time(), 2.0);
}

TEST(WgmmaRounds, NorIsOneWhosePartsAreShorterThanTheExchange) {
  EXPECT_EQ(wgmma_rounds(kHopper, 1025, 1024, 256).parts, 1);
  EXPECT_EQ(wgmma_rounds(kHopper, 1025, 1024, 4096).parts, 3);
}

TEST(WgmmaRounds, AnOddBlockOfRowsHasWideTiles) {
  const WgmmaRounds r = wgmma_rounds(kHopper, 3392, 37888, 3584);  // 27 blocks of rows
  EXPECT_EQ(r.tall, 13);
  EXPECT_TRUE(r.wide);
  EXPECT_EQ(r.tiles(), 13 * 148 + 74);
  EXPECT_EQ(wgmma_rounds(kHopper, 300, 768, 1024).tiles(), 3 + 2) << "of an odd number of columns the last has one block";
  EXPECT_FALSE(wgmma_rounds(kHopper, 512, 768, 1024).wide);
}

TEST(WgmmaRounds, FewTilesLeaveTheDeviceIdle) {
  EXPECT_LT(wgmma_rounds(kHopper, 512, 896, 896).share(), 0.5);
  EXPECT_GT(wgmma_rounds(kHopper, 1025, 3072, 1024).share(), 0.8);
}

TEST(WgmmaRounds, UpTo128RowsABlockIsAlone) {
  const WgmmaRounds r = wgmma_rounds(kHopper, 128, 37888, 3584);
  EXPECT_EQ(r.tall, 1);
  EXPECT_FALSE(r.wide);
  EXPECT_EQ(r.clusters, 132);
  EXPECT_EQ(wgmma_rounds({.multiprocessors = 1}, 256, 256, 64).clusters, 1) << "a device of one multiprocessor still has one";
}

}  // namespace
}  // namespace tessera::cuda
