#pragma once

#include <algorithm>
#include <cstdint>

#include "core/device_limits.h"

namespace tessera::cuda {

/// How the 48 KB product (gemm/mma_linear.cu) cuts K where few rows leave its tiles too few for the device, or a last round of them idle: parts
/// of each tile, whose sums meet in memory, in a pass of its own.
struct MmaParts {
  int64_t parts = 1;
  int64_t steps = 0;  ///< of K in a part; the last may have fewer
};

inline constexpr int64_t kMmaTile = 128, kMmaDepth = 32;
inline constexpr int64_t kMmaBlocks = 2;          ///< a multiprocessor
inline constexpr int64_t kMmaMostParts = 16;      ///< sums in f32 that are written and read again
inline constexpr int64_t kMmaLeastSteps = 4;      ///< of a part: more than the stages that fill before the first is multiplied
inline constexpr int64_t kMmaSumSteps = 6;        ///< writing and reading a part's sums is taken to last as long as this many steps
inline constexpr int64_t kMmaMostSplitRows = 256;  ///< where more rows leave tiles few, their sums would be long

/// A pure function. `room`: bytes for the parts' sums.
inline MmaParts mma_parts(const DeviceLimits& limits, int64_t m, int64_t packed_rows, int64_t k, int64_t room) {
  const int64_t steps = std::max<int64_t>(1, (k + kMmaDepth - 1) / kMmaDepth);
  const int64_t tiles = ((m + kMmaTile - 1) / kMmaTile) * ((packed_rows + kMmaTile - 1) / kMmaTile);
  const int64_t at_once = kMmaBlocks * std::max<int64_t>(1, limits.multiprocessors);
  auto rounds = [&](int64_t parts) { return (tiles * parts + at_once - 1) / at_once; };
  MmaParts best{.parts = 1, .steps = steps};
  if (m > kMmaMostSplitRows) return best;
  int64_t best_time = rounds(1) * steps;
  for (int64_t wanted = 2; wanted <= std::min(kMmaMostParts, steps / kMmaLeastSteps); ++wanted) {
    const int64_t each = (steps + wanted - 1) / wanted, parts = (steps + each - 1) / each;
    if (parts * m * packed_rows * static_cast<int64_t>(sizeof(float)) > room) break;
    const int64_t time = rounds(parts) * (each + kMmaSumSteps);
    if (time >= best_time) continue;
    best_time = time;
    best = {.parts = parts, .steps = each};
  }
  return best;
}

}  // namespace tessera::cuda
