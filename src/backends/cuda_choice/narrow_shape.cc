#include "backends/cuda_choice/narrow_shape.h"

#include <algorithm>

#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/weight_layout.h"

namespace tessera::cuda {
namespace {

constexpr int64_t kDepth = 64;
constexpr int64_t kMostRows = 384;  // a consumer's accumulators: at most 3 tiles of 64 x 64
// Two kernels' blocks live on a multiprocessor at once, the one that ends and the one whose ring fills, but no two of one
// kernel: sizes over and under half of its 228 KB go in turns along a layer (skinny_linear.cu). A wide slab without a
// cluster gains more from the stages that fit into all of it: gate and up of the 8B, 64 tokens, 2 stages 111 us, 4 stages
// 100 us (H100).
constexpr int64_t kOverHalf = (113 << 10) + 512;
constexpr int64_t kMore = 120 << 10;
constexpr int64_t kLess = 106 << 10;
constexpr int64_t kWhole = 190 << 10;
constexpr int64_t kWide = 198 << 10;  ///< four stages of gate and up of the 8B, and their products in order
/// Rows of a slab where a block takes several: one accumulator tile, and many stages, that stay full while a slab ends (head of the
/// 1B, 64 tokens, H200: 384 rows 95 us, 128 rows 72).
constexpr int64_t kManySlabs = 128;
constexpr int64_t kOverhead = 2048;  ///< alignment and barriers
constexpr int64_t kEnoughStages = 4, kMostStages = 8;
/// Of x under way, where a block reads all of it beside a small slab. The rest of the room is for weights, which come ahead of the wait:
/// of gate and up of the 1B, 64 tokens, 8 of 14 steps, where rings of the same depth hold 6.
constexpr int64_t kEnoughX = 32 << 10;
constexpr int64_t kLongStream = 32;  ///< steps of a block from which depth gains more than the next kernel's early start
constexpr double kStageCost = 0.15;  ///< what each stage below enough costs, as a part of the whole
// Exchange of a slab's sums through a cluster's shared memory, in bytes that a multiprocessor could have read meanwhile.
constexpr double kClusterCost = 32 << 10;
// L2 gives about 1.4 times what memory does, x and weight together.
constexpr double kCacheSpeed = 1.4;

/// Pairs of blocks find room everywhere. Larger clusters lie inside a processing cluster, of 16 multiprocessors or a few
/// more or less: a tenth is left free (8B, down, 64 rows: 32 clusters of 4 take 62 us, 28 take 56).
int64_t clusters_at_once(int64_t multiprocessors, int64_t size) {
  if (size <= 2) return multiprocessors / size;
  return std::min(multiprocessors / 16 * (16 / size), multiprocessors * 9 / (10 * size));
}

/// Groups of 8 rows that a block ends; `together` of them stay together.
int64_t places(const NarrowShape& s, int64_t together) {
  const int64_t units = s.rows / 8 / together;
  return (units + s.cluster - 1) / s.cluster * together;
}

/// wgmma reads whole tiles of 128 rows: past the last stage's slab there must be memory.
int64_t past_slab(const NarrowShape& s) { return 128 * (round_up(s.rows, 128) - s.rows); }

/// Behind the ring: that, and where the products of a gated slab are put in order.
int64_t behind_ring(const NarrowShape& s) {
  return std::max<int64_t>(past_slab(s), s.gated ? int64_t{s.columns} * staged_row_bytes(s.rows) : 0);
}

/// Of the ring in a block of `bytes`.
int64_t stages_in(int64_t bytes, const NarrowShape& s) {
  return (bytes - kOverhead - s.beside_bytes - behind_ring(s)) / (128 * (s.columns + s.rows));
}

int64_t rings(const NarrowShape& s) { return 128 * (int64_t{s.stages} * s.rows + int64_t{s.x_stages} * s.columns); }

/// Fewer stages of x for more of the weight.
void spare_x(NarrowShape& s, int64_t bytes, int64_t steps) {
  s.x_stages = static_cast<int>(std::min<int64_t>(s.stages, kEnoughX / (128 * s.columns)));
  const int64_t room = bytes - kOverhead - s.beside_bytes - behind_ring(s) - int64_t{s.x_stages} * 128 * s.columns;
  s.stages = static_cast<int>(std::min({room / (128 * s.rows), kMostStages, steps}));
}

/// The rings and what lies behind them, when slabs and clusters are known. `steps`: of a slab; `rounds`: slabs of a block; `together`: groups
/// of 8 rows that one block ends; `alone`: no second block of the kernel shall lie on its multiprocessor.
void lay_out(NarrowShape& s, int64_t steps, int64_t rounds, int64_t together, bool alone) {
  s.sent_bytes = s.sends ? static_cast<int>(s.cluster * places(s, together) * 8 * sent_row_bytes(s.columns)) : 0;
  s.beside_bytes = s.sends ? static_cast<int>(round_up(places(s, together) * 8 * s.columns * 4, 1024)) : 0;
  const bool wide = s.cluster == 1 && stages_in(alone ? kMore : kLess, s) < kEnoughStages;
  const bool deep = (s.sends || (s.slabs > s.blocks && !s.gated)) && steps * rounds >= kLongStream;
  const int64_t most = deep ? kWhole : alone ? kMore : kLess;
  const int64_t stages = wide && !deep ? std::min(kEnoughStages, stages_in(kWide, s)) : stages_in(most, s);
  s.stages = s.x_stages = static_cast<int>(std::min({std::max<int64_t>(2, stages), kMostStages, steps}));
  if (s.gated && !wide) spare_x(s, most, steps);
  const int64_t filled = rings(s);
  s.sums_apart = kOverhead + s.beside_bytes + filled + s.sent_bytes <= most;
  const int64_t past = behind_ring(s);
  s.shared_bytes = kOverhead + s.beside_bytes + (s.sums_apart ? filled + std::max<int64_t>(past, s.sent_bytes) : std::max<int64_t>(filled + past, s.sent_bytes));
  if (alone) s.shared_bytes = std::max(s.shared_bytes, kOverHalf);
}

NarrowShape of_columns(int64_t m) {
  NarrowShape s;
  s.columns = m <= 16 ? 16 : m <= 32 ? 32 : 64;
  return s;
}

}  // namespace

NarrowShape narrow_shape(int64_t m, int64_t rows, int64_t k, int64_t multiprocessors, NarrowEnd end) {
  NarrowShape best;
  const int64_t steps = (k + kDepth - 1) / kDepth;
  double best_cost = 0;
  int64_t best_rounds = 1;
  for (int64_t cluster : {1, 2, 4, 8}) {
    const int64_t at_once = clusters_at_once(multiprocessors, cluster);
    const int64_t rounds = at_once == 0 ? 0 : (rows + at_once * kMostRows - 1) / (at_once * kMostRows);
    if (at_once == 0 || (cluster > 1 && (steps < 2 * cluster || end == NarrowEnd::kGated || rounds > 1))) continue;
    NarrowShape s = of_columns(m);
    s.gated = end == NarrowEnd::kGated;
    const int64_t equal = round_up((rows + at_once * rounds - 1) / (at_once * rounds), 16);
    s.rows = static_cast<int>(rounds > 1 && !s.gated ? kManySlabs : equal);
    s.cluster = static_cast<int>(cluster);
    s.sends = cluster > 1;
    s.slabs = static_cast<int>((rows + s.rows - 1) / s.rows);
    s.blocks = static_cast<int>(std::min<int64_t>(s.slabs, at_once) * cluster);
    const double deep = static_cast<double>((steps + cluster - 1) / cluster * kDepth * 2 * rounds);
    const double memory = static_cast<double>(s.rows) * deep;
    const double cache = static_cast<double>(s.rows + s.columns) * deep / kCacheSpeed;
    const int64_t stages = std::min(kEnoughStages, stages_in(cluster == 1 ? kWide : kLess, s));
    const double cost = std::max(memory, cache) * (1 + kStageCost * static_cast<double>(kEnoughStages - stages)) +
                        (cluster > 1 ? kClusterCost : 0);
    if (best.rows != 0 && cost >= best_cost) continue;
    best_cost = cost;
    best_rounds = cluster > 1 ? 1 : (s.slabs + at_once - 1) / at_once;
    best = s;
  }
  best.boxes = best.rows > 256 ? 2 : 1;
  best.box_rows = best.rows / best.boxes;
  lay_out(best, (steps + best.cluster - 1) / best.cluster, best_rounds, 1, end == NarrowEnd::kGated);
  return best;
}

std::optional<NarrowShape> narrow_heads_shape(int64_t m, int64_t heads, int64_t head_dim, int64_t k,
                                              int64_t multiprocessors) {
  constexpr double kLeastBusy = 0.5;
  if (head_dim > 256) return std::nullopt;
  const int64_t steps = (k + kDepth - 1) / kDepth;
  NarrowShape s = of_columns(m);
  s.rows = s.box_rows = static_cast<int>(head_dim);
  s.boxes = 1;
  s.slabs = static_cast<int>(heads);
  for (int64_t cluster : {8, 6, 5, 4, 3, 2, 1}) {
    if (clusters_at_once(multiprocessors, cluster) < heads || steps < 2 * cluster) continue;
    s.cluster = static_cast<int>(cluster);
    s.blocks = static_cast<int>(heads * cluster);
    s.sends = true;
    if (static_cast<double>(s.blocks) < kLeastBusy * static_cast<double>(multiprocessors)) break;
    lay_out(s, (steps + cluster - 1) / cluster, 1, 2, true);
    return s;
  }
  return std::nullopt;
}

}  // namespace tessera::cuda
