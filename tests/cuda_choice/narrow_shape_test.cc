#include "backends/cuda_choice/narrow_shape.h"

#include <gtest/gtest.h>

#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/weight_layout.h"

namespace tessera::cuda {
namespace {

TEST(NarrowShape, EverySlabHasItsPlaceAndFits) {
  for (int64_t sms : {1, 16, 78, 132, 144})
    for (int64_t m : {1, 9, 16, 17, 33, 64})
      for (int64_t rows : {64, 896, 1152, 3584, 4608, 9728, 37888, 151680})
        for (int64_t k : {8, 64, 896, 3584, 18944})
          for (bool gated : {false, true}) {
            SCOPED_TRACE(std::to_string(sms) + " multiprocessors, " + std::to_string(m) + " x " + std::to_string(rows) + " x " + std::to_string(k));
            const NarrowShape s = narrow_shape(m, rows, k, sms, gated);
            EXPECT_GE(s.columns, m);
            ASSERT_GT(s.rows, 0);
            EXPECT_EQ(s.rows % 16, 0);
            EXPECT_EQ(s.boxes * s.box_rows, s.rows);
            EXPECT_EQ(s.box_rows % 8, 0);  // a swizzle's period
            EXPECT_LE(s.box_rows, 256);
            EXPECT_GE(int64_t{s.slabs} * s.rows, rows);
            EXPECT_LT(int64_t{s.slabs - 1} * s.rows, rows);
            EXPECT_EQ(s.blocks % s.cluster, 0);
            EXPECT_LE(s.blocks, std::max<int64_t>(sms, 1));
            // Each of a cluster has a step of K and whole pairs of columns.
            EXPECT_LE(s.cluster, (k + 63) / 64);
            EXPECT_EQ((gated ? s.rows / 2 : s.rows) % (2 * s.cluster), 0);
            EXPECT_GE(s.stages, 2);
            EXPECT_LE(s.shared_bytes, shared_bytes::kNarrow);
          }
}

TEST(NarrowShape, LargeWeightsKeepEveryMultiprocessorBusy) {
  const NarrowShape s = narrow_shape(64, 37888, 3584, 132, true);
  EXPECT_EQ(s.cluster, 1);
  EXPECT_EQ(s.blocks, 132);
  EXPECT_EQ(s.rows, 288);
}

TEST(NarrowShape, FewRowsShareKInClusters) {
  const NarrowShape s = narrow_shape(64, 3584, 18944, 132, false);
  EXPECT_EQ(s.cluster, 4);
  EXPECT_EQ(s.blocks, 128);
  EXPECT_GE(s.stages, 4);
}

}  // namespace
}  // namespace tessera::cuda
