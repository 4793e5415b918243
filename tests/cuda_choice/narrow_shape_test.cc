#include "backends/cuda_choice/narrow_shape.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/weight_layout.h"

namespace tessera::cuda {
namespace {

TEST(NarrowShape, EverySlabHasItsPlaceAndFits) {
  for (int64_t sms : {1, 16, 78, 132, 144})
    for (int64_t m : {1, 9, 16, 17, 33, 64})
      for (int64_t rows : {64, 896, 1152, 3584, 4608, 9728, 37888, 151680})
        for (int64_t k : {8, 64, 896, 3584, 18944})
          for (NarrowEnd end : {NarrowEnd::kPlain, NarrowEnd::kGated}) {
            SCOPED_TRACE(std::to_string(sms) + " multiprocessors, " + std::to_string(m) + " x " + std::to_string(rows) + " x " + std::to_string(k));
            const NarrowShape s = narrow_shape(m, rows, k, sms, end);
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
            EXPECT_LE(s.cluster, (k + 63) / 64);  // each of a cluster has a step of K
            if (s.sends) EXPECT_EQ(s.slabs * s.cluster, s.blocks);
            if (end == NarrowEnd::kGated) EXPECT_EQ(s.cluster, 1);
            EXPECT_EQ(s.beside_bytes % 1024, 0);  // the ring begins behind it
            EXPECT_GE(s.beside_bytes / s.columns * (s.columns + 4), s.sent_bytes / s.cluster);
            EXPECT_GE(s.shared_bytes, s.beside_bytes + s.sent_bytes + (s.sums_apart ? 128 * (s.stages * s.rows + s.x_stages * s.columns) : 0));
            EXPECT_GE(s.stages, std::min<int64_t>(2, (k + 63) / 64 / s.cluster));
            EXPECT_LE(s.stages, (k + 64 * s.cluster - 1) / (64 * s.cluster));  // of a slab's steps
            EXPECT_GE(s.x_stages, 1);
            EXPECT_LE(s.x_stages, s.stages);
            EXPECT_LE(s.shared_bytes, shared_bytes::kNarrow);
            const int64_t ring = 128 * (int64_t{s.stages} * s.rows + int64_t{s.x_stages} * s.columns);
            if (end == NarrowEnd::kGated) EXPECT_LE(ring + s.columns * staged_row_bytes(s.rows), s.shared_bytes);
          }
}

TEST(NarrowShape, LargeWeightsKeepEveryMultiprocessorBusy) {
  const NarrowShape s = narrow_shape(64, 37888, 3584, 132, NarrowEnd::kGated);
  EXPECT_EQ(s.cluster, 1);
  EXPECT_EQ(s.blocks, 132);
  EXPECT_EQ(s.rows, 288);
}

TEST(NarrowShape, FewRowsShareKInClusters) {
  const NarrowShape s = narrow_shape(64, 3584, 18944, 132, NarrowEnd::kPlain);
  EXPECT_EQ(s.cluster, 4);
  EXPECT_EQ(s.blocks, 112);
  EXPECT_GE(s.stages, 4);
}

/// Along a layer q | k | v, o, gate and up, down: beside each fits the next, but no second of its own kind.
TEST(NarrowShape, SizesGoOverAndUnderHalfInTurns) {
  constexpr int64_t kAll = 228 << 10, kOfDriver = 1024;
  for (const auto& [heads, head_dim, hidden, ffn] :
       std::vector<std::array<int64_t, 4>>{{18, 64, 896, 4864}, {16, 128, 1536, 8960}}) {
    const int64_t sizes[] = {narrow_heads_shape(64, heads, head_dim, hidden, 132)->shared_bytes,
                             narrow_shape(64, hidden, hidden, 132, NarrowEnd::kPlain).shared_bytes,
                             narrow_shape(64, 2 * ffn, hidden, 132, NarrowEnd::kGated).shared_bytes,
                             narrow_shape(64, hidden, ffn, 132, NarrowEnd::kPlain).shared_bytes};
    for (int i = 0; i < 4; ++i) {
      SCOPED_TRACE(std::to_string(hidden) + ", product " + std::to_string(i));
      EXPECT_LE(sizes[i] + sizes[(i + 1) % 4] + 2 * kOfDriver, kAll);
      if (i % 2 == 0) EXPECT_GT(2 * (sizes[i] + kOfDriver), kAll);
    }
  }
}

TEST(NarrowShape, AHeadIsASlabWhereThatFillsTheDevice) {
  for (int64_t m : {9, 33, 64})
    for (const auto& [heads, head_dim, k] :
         std::vector<std::array<int64_t, 3>>{{18, 64, 896}, {36, 128, 3584}, {16, 128, 1536}, {56, 128, 5120}}) {
      SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(heads) + " heads x " + std::to_string(k));
      const auto s = narrow_heads_shape(m, heads, head_dim, k, 132);
      ASSERT_TRUE(s);
      EXPECT_EQ(s->rows, head_dim);
      EXPECT_EQ(s->slabs, heads);
      EXPECT_EQ(s->blocks, heads * s->cluster);
      EXPECT_LE(s->blocks, 132);
      EXPECT_GE(s->blocks, 66);
      EXPECT_TRUE(s->sends);
      EXPECT_GE(s->stages, 2);
      EXPECT_LE(s->shared_bytes, shared_bytes::kNarrow);
    }
  EXPECT_FALSE(narrow_heads_shape(64, 144, 128, 8192, 132));  // more heads than multiprocessors
  EXPECT_FALSE(narrow_heads_shape(64, 6, 64, 64, 132));       // one step of K
}

}  // namespace
}  // namespace tessera::cuda