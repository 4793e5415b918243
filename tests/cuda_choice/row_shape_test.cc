#include "backends/cuda_choice/row_shape.h"

#include <gtest/gtest.h>

#include "backends/cuda_choice/device_table.h"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

constexpr RowLayer kOneB = {.hidden = 896, .ffn = 4864, .heads = 14, .kv_heads = 2, .head_dim = 64, .max_kv = 512};

DeviceLimits h200() { return describe_device("h200").value(); }

TEST(RowShape, TheLanguageModelOfTheOneBOnAnH200) {
  const auto shape = row_shape(h200(), kOneB);
  ASSERT_TRUE(shape);
  EXPECT_EQ(shape->blocks, 116);
  EXPECT_EQ(shape->early_tiles, 4);
  EXPECT_EQ(shape->attend_bytes, 187648 + 4 * 4864);
}

TEST(RowShape, EveryRowHasItsBlock) {
  for (int64_t multiprocessors = 1; multiprocessors <= 300; ++multiprocessors) {
    DeviceLimits limits = h200();
    limits.multiprocessors = multiprocessors;
    const auto shape = row_shape(limits, kOneB);
    EXPECT_EQ(shape.has_value(), multiprocessors >= 128) << multiprocessors;
    if (!shape) continue;
    EXPECT_LE(shape->blocks + row::kCluster, multiprocessors);
    for (int64_t b = 0; b < shape->blocks; ++b) {
      const auto share = [&](int64_t columns) { return columns * (b + 1) / shape->blocks - columns * b / shape->blocks; };
      EXPECT_LE(share(4864), row::kMostGates);
      EXPECT_LE(share(896), row::kMostDown);
      EXPECT_GE(share(896), row::kLeastDown);
    }
  }
}

TEST(RowShape, KeysHaveRoomOrTheLayerIsLeftToItsOperators) {
  for (int64_t keys : {0, 1, 128, 129, 1024, 1025, 2816}) {
    RowLayer layer = kOneB;
    layer.max_kv = keys;
    const auto shape = row_shape(h200(), layer);
    ASSERT_TRUE(shape) << keys;
    EXPECT_LE(shape->attend_bytes, shared_bytes::kRowLayer);
    EXPECT_GE((shape->early_tiles + row::kLateTiles) * row::kTileKeys * (row::kCluster / row::kKvHeads), keys);
  }
  RowLayer layer = kOneB;
  layer.max_kv = 2817;
  EXPECT_FALSE(row_shape(h200(), layer));
}

TEST(RowShape, OtherShapesAreNot) {
  for (int64_t RowLayer::*member : {&RowLayer::hidden, &RowLayer::ffn, &RowLayer::heads, &RowLayer::kv_heads, &RowLayer::head_dim}) {
    RowLayer layer = kOneB;
    layer.*member *= 2;
    EXPECT_FALSE(row_shape(h200(), layer));
  }
}

TEST(RowShape, NeedsAWholeHopperMultiprocessor) {
  EXPECT_TRUE(choose_kernels({.limits = h200()}).row_layer);
  EXPECT_FALSE(choose_kernels({.limits = h200(), .weights = DType::kF32}).row_layer);
  EXPECT_FALSE(choose_kernels({.limits = describe_device("a100").value()}).row_layer);
  DeviceLimits limits = h200();
  ASSERT_TRUE(impose_limits(limits, {{"shared_memory_per_block", 65536}}).ok());
  EXPECT_FALSE(choose_kernels({.limits = limits, .imposed = true}).row_layer);
}

}  // namespace
}  // namespace tessera::cuda
