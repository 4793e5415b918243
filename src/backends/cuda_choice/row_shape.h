#pragma once

#include <cstdint>
#include <optional>

#include "core/device_limits.h"

namespace tessera::cuda {

/// What decides whether a decoder layer of one sequence is three kernels (src/backends/cuda/row) instead of five.
struct RowLayer {
  int64_t hidden = 0, ffn = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t max_kv = 0;  ///< most keys of the step
  bool operator==(const RowLayer&) const = default;
};

struct RowShape {
  int blocks = 0;        ///< of gate and up, and of down: a multiprocessor each, beside those of the cluster
  int early_tiles = 0;   ///< of keys that a block of the cluster brings first; others wait for room
  int64_t attend_bytes = 0;  ///< shared memory of a block of the cluster
};

/// A pure function. Nothing where the layer is not one that fits: its weights must lie in shared memory and registers before they
/// are needed, so the kernels are made for one shape, the language model of InternVL's 1B (Qwen2-0.5B).
std::optional<RowShape> row_shape(const DeviceLimits& limits, const RowLayer& layer);

namespace row {

inline constexpr int kHidden = 896, kFfn = 4864, kHeads = 14, kKvHeads = 2, kHeadDim = 64;
inline constexpr int kCluster = 16;           ///< blocks of the attention half
inline constexpr int kMostGates = 44;         ///< columns of gate and up that a block takes
inline constexpr int kLeastDown = 5, kMostDown = 8;  ///< rows of down
inline constexpr int kTileKeys = 16;          ///< keys of a tile; an eighth of the tiles a block
// Shared memory of a block of the cluster: what is always there, a tile of keys; tiles that later find room among the first.
inline constexpr int kAttendFixedBytes = 187648, kTileRoom = 4864, kEarlyTiles = 8, kLateTiles = 14;

}  // namespace row
}  // namespace tessera::cuda
