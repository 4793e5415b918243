#pragma once

#include <algorithm>
#include <cstdint>

#include "core/device_limits.h"

namespace tessera::cuda {

/// How the wgmma product covers an output of m x packed_rows: clusters of blocks make tiles of 128 rows a block by 256
/// columns, round after round. The tiles of a last round that is mostly empty are cut into pieces of 64 columns, as many
/// as there are clusters, which take about 0.75 of a tile's time each (measured: their operands are used less, and nothing hides the end).
struct WgmmaRounds {
  int64_t tiles_m = 0, tiles_n = 0;
  int64_t clusters = 1;  ///< that the device runs at once
  int64_t whole = 0;     ///< tiles made whole

  int64_t tiles() const { return tiles_m * tiles_n; }
  int64_t units() const { return whole + (tiles() - whole) * 4; }
  /// In times of a whole tile.
  double time() const {
    const int64_t narrow = (tiles() - whole) * 4;
    return static_cast<double>((whole + clusters - 1) / clusters) + 0.75 * static_cast<double>((narrow + clusters - 1) / clusters);
  }
  /// Of the device's time that goes into whole tiles' worth of work: 1 when all rounds are full.
  double share() const { return static_cast<double>(tiles()) / (time() * static_cast<double>(clusters)); }
};

/// Blocks of a cluster. Up to 128 rows the second would have none.
inline int64_t wgmma_cluster(int64_t m) { return m <= 128 ? 1 : 2; }

inline WgmmaRounds wgmma_rounds(const DeviceLimits& limits, int64_t m, int64_t packed_rows) {
  const int64_t cluster = wgmma_cluster(m);
  WgmmaRounds r{.tiles_m = (m + 128 * cluster - 1) / (128 * cluster), .tiles_n = (packed_rows + 255) / 256,
                .clusters = std::max<int64_t>(1, limits.multiprocessors / cluster)};
  r.whole = r.tiles();
  WgmmaRounds cut = r;
  cut.whole = r.tiles() / r.clusters * r.clusters;
  return cut.time() < r.time() ? cut : r;
}

}  // namespace tessera::cuda
