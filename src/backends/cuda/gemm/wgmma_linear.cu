#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/gemm/wgmma_tiles.cuh"
#include "backends/cuda_choice/sizing.h"

namespace tessera::cuda {
namespace {

using namespace tiles;

// Persistent blocks make 128 x 256 outputs at a time. One warp brings operands in with bulk tensor copies, two warpgroups
// multiply, 64 rows each; 256 columns are the widest wgmma, so each byte that reaches shared memory serves the most
// multiply-adds. Three more warps end tiles (bias, GELU, residual, stores: tile_end.cuh) while the next are multiplied: at K = 1024
// that takes as long as their products. Two blocks form a cluster, of 256 rows as a rule: each
// brings half of the weight's rows, and the copy engine delivers them to both.
constexpr int kThreads = 384;

#ifdef TESSERA_WGMMA_HERE

constexpr int kEndBarrier = 3;  ///< the named barrier of the warps that end tiles; the warpgroups that multiply have 1 and 2

/// Where a warpgroup is in the ring.
struct Place {
  int stage = 0, before = 0;
  uint32_t phase = 0;
};

/// 64 of K: products are left running.
template <class T>
__device__ __forceinline__ void step(const Ring& ring, uint64_t first_operand, int own, bool first, const Place& at, float* d) {
  barrier_wait(ring.full(at.stage), at.phase);
  const uint64_t x = first_operand + static_cast<uint32_t>(at.stage) * (kStageBytes >> 4) + own * (kXBytes / 2 >> 4);
  const uint64_t weight = first_operand + static_cast<uint32_t>(at.stage) * (kStageBytes >> 4) + (kXBytes >> 4);
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < kDepth / 16; ++j) wgmma<T, kColumns>(d, x + 2 * j, weight + 2 * j, !first || j != 0);
  wgmma_commit();
}

/// A stage is free when it has been read here and, for the part that the neighbour sent, there, too: tells both.
template <int kCluster>
__device__ __forceinline__ void release(const Ring& ring, int stage) {
  const uint32_t thread = threadIdx.x % 128;
  if (thread >= kCluster) return;
  if constexpr (kCluster == 1)
    barrier_arrive(ring.empty(stage));
  else
    barrier_arrive_at(ring.empty(stage), thread);
}

/// Products of the step before have been read, and their stage is given back.
template <int kCluster>
__device__ __forceinline__ void advance(const Ring& ring, bool first, Place& at) {
  wgmma_wait<1>();
  if (!first) release<kCluster>(ring, at.before);
  at.before = at.stage;
  if (++at.stage == kStages) at.stage = 0, at.phase ^= 1;
}

/// 64 packed columns of two rows of a thread, ended from their full sums.
__device__ __forceinline__ void end_now(const GemmParams& g, int row, int packed, const float* d) {
  const int lane_column = 2 * (static_cast<int>(threadIdx.x) % 4);
  if (EndKind(g.end_kind) == EndKind::kFloat && !g.gated && packed + 64 <= static_cast<int>(g.end.columns))
    finish_float<8>(g.end, g.gelu, row, static_cast<int>(g.m), packed + lane_column, d);
  else
    finish_apart<8>(g.end, g.gated, g.gelu, row, g.m, packed, lane_column, d);
}

/// The lanes of a warp are done with what `barrier` stands for.
__device__ __forceinline__ void warp_arrives(uint32_t barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

/// Hands a warp's sums of whole tile number `made` of the block to those who end it. `row`: its first in the tile.
template <class T, TileEnd kKind>
__device__ __forceinline__ void hand_over(const WgmmaParams& p, const Ring& ring, int row, int made, const float* d) {
  float upper = 1.0f, lower = 1.0f;
  if (divides(kKind) && p.g.x_sums) {
    barrier_wait(ring.factors_full(made & 1), (made >> 1) & 1);
    const uint32_t factors = ring.factors(made & 1) + 4 * static_cast<uint32_t>(row + threadIdx.x % 32 / 4);
    upper = load_shared_float(factors);
    lower = load_shared_float(factors + 32);
  }
  barrier_wait(ring.staged_free(), (made & 1) ^ 1);
  ring.staged().store<T>(row, d, upper, lower);
  warp_arrives(ring.staged_full());
}

/// A whole tile of the block: its unit (-1: none), and how many it has made before.
struct Made {
  int index = -1, number = 0;
};

/// One warpgroup's 64 rows of the block's tiles. Returns the last whole one.
template <class T, int kCluster, TileEnd kKind>
__device__ __forceinline__ Made multiply(const WgmmaParams& p, const Ring& ring, int steps, int cluster, int stride, int rank, int own) {
  const uint64_t first_operand = operand(ring.base);
  const int row = own * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16;  // this warp's first
  Place at;
  Made made{.number = -1};
  int unsaid = -1;  ///< a block of split tiles whose sums are written, but not announced
#pragma unroll 1
  for (int u = first_unit(p, cluster); u >= 0; u = next_unit(p, u, cluster, stride)) {
    const Unit unit = unit_at<kCluster>(p, u, rank, steps);
    const int count = unit.end - unit.begin;
    float d[kColumns / 2];
#pragma unroll 1
    for (int k = 0; k < count; ++k) {
      step<T>(ring, first_operand, own, k == 0, at, d);
      advance<kCluster>(ring, k == 0, at);
    }
    wgmma_wait<0>();
    release<kCluster>(ring, at.before);
    if (unit.split >= 0) {
      unsaid = unit.split * kCluster + rank;
      send_sums(p.split, unsaid, own, unit.part, p.parts, d);
      continue;
    }
    made = {u, made.number + 1};
    if constexpr (kKind == TileEnd::kNone) {
#pragma unroll
      for (int i = 0; i < kSlices; ++i) end_now(p.g, unit.row + row + static_cast<int>(threadIdx.x) % 32 / 4, unit.column + 64 * i, d + 32 * i);
    } else {
      hand_over<T, kKind>(p, ring, row, made.number, d);
    }
    if (unsaid >= 0) announce_sums(p.split, unsaid, own), unsaid = -1;
  }
  if (unsaid >= 0) announce_sums(p.split, unsaid, own);
  return made;
}

/// Ends the block's tiles: whole ones in order, and behind the first of them the block's share of a split one. The last one is ended by
/// those who have multiplied, too, since nobody waits for it any more: warps kEndWarps to kEndWarps + kMultiplyWarps - 1.
template <class T, int kCluster, TileEnd kKind>
struct Ender {
  const WgmmaParams& p;
  const Ring& ring;
  int steps, rank, warp;

  /// From `whole` on, and `split` (-1: none).
  __device__ __forceinline__ void run(Made whole, int split, int cluster, int stride) const {
    const bool joins = warp >= kEndWarps;
    if (!joins) find_factors(whole.index, 0);
    int then = whole.index < 0 ? -1 : next_unit(p, whole.index, cluster, stride);
    if (!joins) find_factors(then, 1);
#pragma unroll 1
    while (whole.index >= 0 || split >= 0) {
      if (whole.index >= 0) {
        end_whole(unit(whole.index), whole.number, then < 0);
        whole = {then, whole.number + 1};
        if (then >= 0) then = next_unit(p, then, cluster, stride);
        find_factors(then, (whole.number - 1) & 1);
      }
      if (split >= 0) end_split(split);
      split = -1;
    }
  }

 private:
  __device__ __forceinline__ Unit unit(int index) const { return unit_at<kCluster>(p, index, rank, steps); }
  __device__ __forceinline__ bool scaled() const { return divides(kKind) && p.g.x_sums; }

  /// Of the rows of x of a whole tile, for those who multiply.
  __device__ __forceinline__ void find_factors(int index, int turn) const {
    if (!scaled() || index < 0) return;
    leave_factors(unit(index), turn);
    barrier_arrive(ring.factors_full(turn));
  }
  __device__ __forceinline__ void leave_factors(const Unit& of, int turn) const {
#pragma unroll 1
    for (int row = warp * 32 + static_cast<int>(threadIdx.x) % 32; row < kRows; row += kEndWarps * 32)
      store_shared_float(ring.factors(turn) + 4 * static_cast<uint32_t>(row), one_by_deviation(p.g, of.row + row));
  }

  __device__ __forceinline__ void end_whole(const Unit& of, int made, bool last) const {
    RowEnd<T, kKind>(p.g).run(ring.staged(), of.row, of.column, warp, last ? kEndWarps + kMultiplyWarps : kEndWarps,
                              [&] { barrier_wait(ring.staged_full(), made & 1); });
    if (!last) warp_arrives(ring.staged_free());
  }

  /// A split tile's sums have met: ends this part's share of its columns, 16 rows by a warp.
  __device__ __forceinline__ void end_split(int index) const {
    const Unit of = unit(index);
    const int block = of.split * kCluster + rank;
    if (scaled()) leave_factors(of, 2);
    if (warp == 0 && threadIdx.x % 32 == 0)
      for (int own = 0; own < 2; ++own) wait_for_sums(p.split, block, own, p.parts);
    named_barrier_sync(kEndBarrier, kEndWarps * 32);
#pragma unroll 1
    for (int slice = of.part; slice < kSlices; slice += p.parts)
#pragma unroll 1
      for (int from = warp; from < kMultiplyWarps; from += kEndWarps) end_part(of, block, slice, from);
  }
  /// What warp `from` of those that multiply has made of a slice.
  __device__ __forceinline__ void end_part(const Unit& of, int block, int slice, int from) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, row = 16 * from, packed = of.column + kColumns / kSlices * slice;
    float sums[32];
    add_slice(p.split, block, from / 4, p.parts, slice, from % 4 * 32 + lane, sums);
    const uint32_t factors = ring.factors(2) + 4 * static_cast<uint32_t>(row + lane / 4);
    __syncwarp();  // the rows before have been read
    ring.slice(warp).template store<T>(0, sums, scaled() ? load_shared_float(factors) : 1.0f, scaled() ? load_shared_float(factors + 32) : 1.0f);
    __syncwarp();
    RowEnd<T, kKind>(p.g).run(ring.slice(warp), of.row + row, packed, 0, 1, [] {});
  }
};

#endif

template <class T, int kCluster, TileEnd kKind>
__global__ __launch_bounds__(kThreads, 1) void wgmma_linear_kernel(const __grid_constant__ WgmmaParams p) {
#ifdef TESSERA_WGMMA_HERE
  extern __shared__ unsigned char raw[];
  const Ring ring(raw);
  if (threadIdx.x == 0) ring.init(2 * kCluster);
  if constexpr (kCluster > 1)
    cluster_sync();
  else
    __syncthreads();
  const int steps = static_cast<int>((p.g.k + kDepth - 1) / kDepth);
  const int cluster = static_cast<int>(blockIdx.x) / kCluster, stride = static_cast<int>(gridDim.x) / kCluster;
  const int rank = kCluster == 1 ? 0 : static_cast<int>(cluster_rank());
  // By a shuffle, so that the compiler knows that a warp agrees on it and keeps what follows in uniform registers.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0), group = warp / 4;
  constexpr bool kEnds = kKind != TileEnd::kNone;  // by others than those who multiply
  const int first = first_unit(p, cluster), split = group == 0 && first >= p.whole ? first : -1;
  Made whole{first >= p.whole ? next_unit(p, first, cluster, stride) : first, 0};
  if (group == 0) {
    if constexpr (!kEnds) give_registers<24>();
    if (threadIdx.x == 0) Bringer<kCluster>{p, ring, rank}.run(steps, cluster, stride);
    __syncwarp();  // the cluster's barrier wants whole warps
    wait_for_previous();
  } else {
    if constexpr (!kEnds) take_registers<240>();  // for ends from full sums
    wait_for_previous();
    whole = multiply<T, kCluster, kKind>(p, ring, steps, cluster, stride, rank, group - 1);
  }
  if constexpr (kEnds)
    if (warp > 0) Ender<T, kCluster, kKind>{p, ring, steps, rank, warp - 1}.run(whole, split, cluster, stride);
  let_next_start();
  if constexpr (kCluster > 1) cluster_sync();  // the neighbour may still write here
#endif
}

/// Room for the sums of `blocks` blocks that make parts of tiles.
SplitSums split_sums(CudaStream& stream, int64_t blocks) {
  static_assert(kPartialBytes == kSplitBytes);
  if (blocks == 0) return {};
  TESSERA_CHECK(2 * blocks <= kArrivals, "[linear] " + std::to_string(blocks) + " blocks are more than can meet");
  return {static_cast<float4*>(stream.device.product_scratch.get(static_cast<size_t>(blocks) * kPartialBytes, "linear", stream.capturing)),
          stream.device.arrived};
}

template <class T, int kCluster>
void run(Stream& stream, DType dtype, const GemmParams& g) {
  CudaStream& s = cuda_stream(stream);
  // Blocks that wait for each other must run at once: what the device says counts, not its number of multiprocessors.
  static const int64_t kResident = resident_clusters(reinterpret_cast<const void*>(wgmma_linear_kernel<T, kCluster, TileEnd::kHalf>),
                                                     kThreads, kBytes, kCluster);
  DeviceLimits limits = s.device.limits;
  limits.multiprocessors = std::min<int64_t>(limits.multiprocessors, kResident * kCluster);
  const TileEnd kind = tile_end(g);
  WgmmaRounds rounds = wgmma_rounds(limits, g.m, g.packed_rows, g.k);
  if (kind == TileEnd::kNone) rounds.whole = rounds.tiles(), rounds.parts = 1;  // nobody to end parts
  const WgmmaParams p{.x = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, kRows),
                      .x_half = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, kRows / 2),
                      .weight = tensor_map(dtype, g.weight, g.packed_rows, g.k, g.weight_stride, kColumns / kCluster),
                      .g = g,
                      .tall = static_cast<int>(rounds.tall),
                      .tiles_n = static_cast<int>(rounds.tiles_n),
                      .tiles = static_cast<int>(rounds.tiles()),
                      .whole = static_cast<int>(rounds.whole),
                      .parts = static_cast<int>(rounds.parts),
                      .split = split_sums(s, (rounds.units() - rounds.whole) * kCluster)};
  const auto clusters = static_cast<unsigned>(std::min(rounds.clusters, rounds.units()));
  auto launch = [&](auto kernel) {
    launch_fast(stream, "wgmma_linear", Grid{clusters * kCluster}, kThreads, kBytes, kernel, p,
                {.overlap = true, .cluster = kCluster});
  };
  switch (kind) {
    case TileEnd::kNone: return launch(wgmma_linear_kernel<T, kCluster, TileEnd::kNone>);
    case TileEnd::kHalf: return launch(wgmma_linear_kernel<T, kCluster, TileEnd::kHalf>);
    case TileEnd::kGelu: return launch(wgmma_linear_kernel<T, kCluster, TileEnd::kGelu>);
    case TileEnd::kGated: return launch(wgmma_linear_kernel<T, kCluster, TileEnd::kGated>);
    case TileEnd::kFloat: return launch(wgmma_linear_kernel<T, kCluster, TileEnd::kFloat>);
    case TileEnd::kStream: return launch(wgmma_linear_kernel<T, kCluster, TileEnd::kStream>);
  }
}

}  // namespace

void wgmma_linear(Stream& stream, DType dtype, const GemmParams& params) {
  GemmParams p = params;
  p.end_kind = static_cast<uint8_t>(end_kind(p.end, dtype));
  if (lone_linear(stream, dtype, p) || lone_stream(stream, dtype, p)) return;
  dispatch_half(dtype, "linear", [&](auto zero) {
    using T = decltype(zero);
    if (wgmma_cluster(p.m) == 1)
      run<T, 1>(stream, dtype, p);
    else
      run<T, 2>(stream, dtype, p);
  });
}

}  // namespace tessera::cuda
