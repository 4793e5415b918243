#include "backends/cuda_choice/row_shape.h"

#include <algorithm>

namespace tessera::cuda {

std::optional<RowShape> row_shape(const DeviceLimits& limits, const RowLayer& layer) {
  using namespace row;
  const RowLayer served{kHidden, kFfn, kHeads, kKvHeads, kHeadDim, layer.max_kv};
  if (layer != served) return std::nullopt;
  const int64_t blocks = std::min<int64_t>(limits.multiprocessors - kCluster, kHidden / kLeastDown);
  if (blocks < (kFfn + kMostGates - 1) / kMostGates || blocks < (kHidden + kMostDown - 1) / kMostDown) return std::nullopt;
  constexpr int64_t kKeys = int64_t{kTileKeys} * (kCluster / kKvHeads);  // that a tile in each block of a key head holds
  const int64_t tiles = (layer.max_kv + kKeys - 1) / kKeys;
  if (tiles > kEarlyTiles + kLateTiles) return std::nullopt;
  const int64_t early = std::min<int64_t>(tiles, kEarlyTiles);
  return RowShape{static_cast<int>(blocks), static_cast<int>(early), kAttendFixedBytes + early * kTileRoom};
}

}  // namespace tessera::cuda
