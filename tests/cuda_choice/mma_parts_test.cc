#include "backends/cuda_choice/mma_parts.h"

#include <gtest/gtest.h>

namespace tessera::cuda {
namespace {

constexpr int64_t kRoom = 96 << 20;

TEST(MmaParts, PartsCoverK) {
  for (int sms : {1, 46, 82, 132})
    for (int64_t m : {1, 64, 128, 129, 256})
      for (int64_t rows : {64, 896, 9728, 37888})
        for (int64_t k : {8, 64, 896, 4864, 18944}) {
          DeviceLimits limits;
          limits.multiprocessors = sms;
          const MmaParts p = mma_parts(limits, m, rows, k, kRoom);
          const int64_t steps = (k + kMmaDepth - 1) / kMmaDepth;
          EXPECT_GE(p.parts * p.steps, steps);
          EXPECT_LT((p.parts - 1) * p.steps, steps);  // none is empty
          if (p.parts == 1) continue;
          EXPECT_GE(p.steps, kMmaLeastSteps);
          EXPECT_LE(p.parts * m * rows * 4, kRoom);
        }
}

TEST(MmaParts, FewTilesOfADecodeStepFillTheDevice) {
  DeviceLimits limits;
  limits.multiprocessors = 132;
  EXPECT_GE(mma_parts(limits, 64, 896, 4864, kRoom).parts * 7, 100);
  EXPECT_EQ(mma_parts(limits, 64, 33792, 3584, kRoom).parts, 1);   // one full round of tiles
  EXPECT_GT(mma_parts(limits, 64, 37888, 3584, kRoom).parts, 1);   // not two of which the second is nearly empty
  EXPECT_EQ(mma_parts(limits, 1025, 1024, 1024, kRoom).parts, 1);  // rows too many
  EXPECT_EQ(mma_parts(limits, 64, 896, 4864, 300 << 10).parts, 1);  // no room
}

}  // namespace
}  // namespace tessera::cuda
