#include "backends/cuda_choice/narrow_shape.h"

#include <algorithm>

#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/weight_layout.h"

namespace tessera::cuda {
namespace {

constexpr int64_t kDepth = 64;
// Two kernels' blocks live on a multiprocessor at once, the one that ends and the one whose ring fills, when each takes
// half of its shared memory. A wide slab without a cluster gains more from the stages that fit into all of it: gate and up
// of the 8B, 64 tokens, 2 stages 111 us, 4 stages 100 us (H100).
constexpr int64_t kRingBytes = 100 << 10;
constexpr int64_t kDeepRingBytes = 188 << 10;
constexpr int64_t kEnoughStages = 4;
constexpr double kStageCost = 0.12;  ///< what each stage below that costs, as a part of the whole
// Exchange of a slab's sums through a cluster's shared memory, in bytes that a multiprocessor could have read meanwhile.
constexpr double kClusterCost = 32 << 10;
// L2 gives about 1.4 times what memory does, x and weight together.
constexpr double kCacheSpeed = 1.4;

/// Clusters of 4 and 8 leave a part of the processing clusters unused whose multiprocessors are no multiple of them:
/// of 132 they get 128.
int64_t clusters_at_once(int64_t multiprocessors, int64_t size) {
  const int64_t usable = size <= 2 ? multiprocessors : multiprocessors / 16 * 16;
  return usable / size;
}

int64_t ring_bytes(int64_t cluster) { return cluster == 1 ? kDeepRingBytes : kRingBytes; }

}  // namespace

NarrowShape narrow_shape(int64_t m, int64_t rows, int64_t k, int64_t multiprocessors, bool gated) {
  NarrowShape best;
  best.columns = m <= 16 ? 16 : m <= 32 ? 32 : 64;
  constexpr int64_t kMostRows = 384;  // a consumer's accumulators: at most 3 tiles of 64 x 64
  const int64_t steps = (k + kDepth - 1) / kDepth;
  double best_cost = 0;
  for (int64_t cluster : {1, 2, 4, 8}) {
    const int64_t at_once = clusters_at_once(multiprocessors, cluster);
    // Pairs of columns are shared out, of gates and ups together.
    if (at_once == 0 || (cluster > 1 && steps < 2 * cluster) || (gated && cluster > 4)) continue;
    const int64_t rounds = (rows + at_once * kMostRows - 1) / (at_once * kMostRows);
    const int64_t slab = round_up((rows + at_once * rounds - 1) / (at_once * rounds), 16);
    const double deep = static_cast<double>((steps + cluster - 1) / cluster * kDepth * 2 * rounds);
    const double memory = static_cast<double>(slab) * deep;
    const double cache = static_cast<double>(slab + best.columns) * deep / kCacheSpeed;
    const int64_t stages = std::min(kEnoughStages, ring_bytes(cluster) / (128 * (best.columns + slab)));
    const double cost = std::max(memory, cache) * (1 + kStageCost * static_cast<double>(kEnoughStages - stages)) +
                        (cluster > 1 ? kClusterCost * static_cast<double>(rounds) : 0);
    if (best.rows != 0 && cost >= best_cost) continue;
    best_cost = cost;
    best.rows = static_cast<int>(slab);
    best.cluster = static_cast<int>(cluster);
    best.slabs = static_cast<int>((rows + slab - 1) / slab);
    best.blocks = static_cast<int>(std::min<int64_t>(best.slabs, at_once) * cluster);
  }
  best.boxes = best.rows > 256 ? 2 : 1;
  if (best.boxes == 2) best.rows = static_cast<int>(round_up(best.rows, 16));
  best.box_rows = best.rows / best.boxes;
  const int64_t stage = 128 * (best.columns + best.rows);
  best.stages = static_cast<int>(std::clamp<int64_t>(kRingBytes / stage, 2, 8));
  if (best.stages < kEnoughStages)
    best.stages = static_cast<int>(std::clamp<int64_t>(ring_bytes(best.cluster) / stage, 2, kEnoughStages));
  best.sum_stride = static_cast<int>(round_up(best.rows, 32) + 4);
  // wgmma reads whole tiles of 128 rows: past the last stage's slab there must be memory.
  const int64_t past = 128 * (round_up(best.rows, 128) - best.rows);
  const int64_t sums = int64_t{4} * best.sum_stride * best.columns;
  best.shared_bytes = 2048 + std::max(best.stages * stage + past, sums);
  return best;
}

}  // namespace tessera::cuda
