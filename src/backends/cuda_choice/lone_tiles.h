#pragma once

#include <cstdint>

#include "core/device_limits.h"

namespace tessera::cuda {

/// A product whose tiles all run at once, one a block (gemm/lone.cuh). Two blocks, one below the other, form a cluster. A row or two that
/// whole blocks leave over may ride along with the first blocks.
struct LoneShape {
  int64_t rows, columns;  ///< of a tile
  int64_t carriers;       ///< blocks of rows that share the riders
};
inline constexpr int64_t kLoneCluster = 2;
inline constexpr int64_t kMostRiders = 2;
inline constexpr LoneShape kLoneLinear{.rows = 128, .columns = 256, .carriers = 8};
inline constexpr LoneShape kLoneStream{.rows = 64, .columns = 128, .carriers = 16};
/// Of K: beyond it the copies of so small tiles cost more than the library's idle multiprocessors and its pass (measured on an H200: one
/// vision tile's projection, 1024, takes 7.5 us for 9.3, its fc2, 4096, 19.8 for 18.0).
inline constexpr int64_t kLoneStreamDepth = 2048;

struct LoneTiles {
  int64_t pairs = 0;      ///< of blocks of rows
  int64_t columns = 0;    ///< blocks of columns
  int64_t riders = 0;     ///< rows that ride along
  bool at_once = false;   ///< all tiles run at once
  double share = 0;       ///< of the device that they keep busy
};

inline LoneTiles lone_tiles(const LoneShape& shape, const DeviceLimits& limits, int64_t m, int64_t packed_rows) {
  const int64_t whole = m / shape.rows, left = m % shape.rows;
  LoneTiles t{.columns = (packed_rows + shape.columns - 1) / shape.columns};
  if (left <= kMostRiders && whole >= shape.carriers) t.riders = left;
  const int64_t blocks = whole + (left > t.riders);
  t.pairs = (blocks + kLoneCluster - 1) / kLoneCluster;
  t.at_once = t.pairs * kLoneCluster * t.columns <= limits.multiprocessors;
  if (limits.multiprocessors > 0) t.share = static_cast<double>(blocks * t.columns) / static_cast<double>(limits.multiprocessors);
  return t;
}

}  // namespace tessera::cuda
