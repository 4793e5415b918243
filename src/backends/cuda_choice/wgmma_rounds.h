#pragma once

#include <algorithm>
#include <cstdint>

#include "core/device_limits.h"

namespace tessera::cuda {

/// How the wgmma product covers an output of m x packed_rows: clusters of blocks make tiles, round after round. A block's
/// tile has 128 rows and 256 columns; the two blocks of a cluster lie below each other, sharing the weight's rows, but beside
/// each other, sharing rows of x, where an odd block of rows is left. The tiles of a last round that leaves half of the
/// device idle are split along K: `parts` clusters make a part each and exchange their sums.
struct WgmmaRounds {
  int64_t tall = 0;      ///< rows of tiles whose blocks lie below each other
  int64_t tiles_n = 0;   ///< blocks of columns
  bool wide = false;     ///< a last block of rows, whose tiles' blocks lie beside each other
  int64_t clusters = 1;  ///< that the device runs at once
  int64_t whole = 0;     ///< tiles made whole, the first ones
  int64_t parts = 1;     ///< of each other tile
  double exchange = 0;   ///< time of an exchange, in times of a whole tile

  int64_t tiles() const { return tall * tiles_n + (wide ? (tiles_n + 1) / 2 : 0); }
  int64_t units() const { return whole + (tiles() - whole) * parts; }
  /// In times of a whole tile.
  double time() const {
    const auto rounds = static_cast<double>((whole + clusters - 1) / clusters);
    return whole == tiles() ? rounds : rounds + 1.0 / static_cast<double>(parts) + exchange;
  }
  /// Of the device's time that goes into whole tiles' worth of work: 1 when all rounds are full.
  double share() const { return static_cast<double>(tiles()) / (time() * static_cast<double>(clusters)); }
};

/// Blocks of a cluster. Up to 128 rows the second would have none.
inline int64_t wgmma_cluster(int64_t m) { return m <= 128 ? 1 : 2; }

/// Of the device that our product must keep busy to be taken before the library's (measured on an H200: at 0.68 fc1 of one tile takes
/// 28 us, of the library and a pass 23).
inline constexpr double kLeastShare = 0.7;
inline constexpr int64_t kWgmmaDepth = 64;    ///< of K, a step
inline constexpr int64_t kWgmmaMostParts = 4;  ///< each ends a quarter of the tile's columns
inline constexpr double kWgmmaExchange = 6;   ///< an exchange is taken to last as long as this many steps

inline WgmmaRounds wgmma_rounds(const DeviceLimits& limits, int64_t m, int64_t packed_rows, int64_t k) {
  const int64_t cluster = wgmma_cluster(m), blocks = (m + 127) / 128, steps = std::max<int64_t>(1, (k + kWgmmaDepth - 1) / kWgmmaDepth);
  WgmmaRounds r{.tall = blocks / cluster, .tiles_n = (packed_rows + 255) / 256, .wide = blocks % cluster != 0,
                .clusters = std::max<int64_t>(1, limits.multiprocessors / cluster),
                .exchange = kWgmmaExchange / static_cast<double>(steps)};
  r.whole = r.tiles();
  WgmmaRounds split = r;
  split.whole = r.tiles() / r.clusters * r.clusters;
  const int64_t rest = r.tiles() - split.whole;
  if (rest == 0) return r;
  split.parts = std::min({kWgmmaMostParts, r.clusters / rest, steps});
  return split.parts > 1 && split.time() < r.time() ? split : r;
}

}  // namespace tessera::cuda
