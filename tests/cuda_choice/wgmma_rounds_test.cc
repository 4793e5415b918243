#include "backends/cuda_choice/wgmma_rounds.h"

#include <gtest/gtest.h>

namespace tessera::cuda {
namespace {

const DeviceLimits kHopper{.multiprocessors = 132};  // 66 clusters of two

TEST(WgmmaRounds, FullRoundsStayWhole) {
  const WgmmaRounds r = wgmma_rounds(kHopper, 66 * 256, 256);
  EXPECT_EQ(r.tiles(), 66);
  EXPECT_EQ(r.whole, 66);
  EXPECT_DOUBLE_EQ(r.time(), 1.0);
  EXPECT_DOUBLE_EQ(r.share(), 1.0);
}

TEST(WgmmaRounds, AMostlyEmptyLastRoundIsCut) {
  const WgmmaRounds r = wgmma_rounds(kHopper, 13 * 1025, 1024);  // 53 x 4 tiles: three rounds and 14 tiles
  EXPECT_EQ(r.tiles(), 212);
  EXPECT_EQ(r.whole, 198);
  EXPECT_EQ(r.units(), 198 + 56);
  EXPECT_DOUBLE_EQ(r.time(), 3.75);
}

TEST(WgmmaRounds, AFullerLastRoundIsNot) {
  const WgmmaRounds r = wgmma_rounds(kHopper, 7 * 1025, 1024);  // 66 + 50 tiles: 200 pieces would take four rounds
  EXPECT_EQ(r.whole, r.tiles());
  EXPECT_DOUBLE_EQ(r.time(), 2.0);
}

TEST(WgmmaRounds, FewTilesLeaveTheDeviceIdle) {
  EXPECT_LT(wgmma_rounds(kHopper, 1025, 1024).share(), 0.5);
  EXPECT_GT(wgmma_rounds(kHopper, 1025, 3072).share(), 0.8);
}

TEST(WgmmaRounds, UpTo128RowsABlockIsAlone) {
  const WgmmaRounds r = wgmma_rounds(kHopper, 128, 37888);
  EXPECT_EQ(r.tiles_m, 1);
  EXPECT_EQ(r.clusters, 132);
  EXPECT_EQ(wgmma_rounds({.multiprocessors = 1}, 256, 256).clusters, 1) << "a device of one multiprocessor still has one";
}

}  // namespace
}  // namespace tessera::cuda
