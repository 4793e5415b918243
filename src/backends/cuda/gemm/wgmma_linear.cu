#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/gemm/late_end.cuh"
#include "backends/cuda/gemm/split_sums.cuh"
#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/sizing.h"
#include "backends/cuda_choice/wgmma_rounds.h"

namespace tessera::cuda {
namespace {

// Persistent blocks make 128 x 256 outputs at a time. One warpgroup brings operands in with bulk tensor copies, two
// multiply, 64 rows each; 256 columns are the widest wgmma, so each byte that reaches shared memory serves the most
// multiply-adds. At K = 1024 the end of a tile (bias, GELU, residual, stores) takes as long as its product, and tiles in
// turns would need operands that shared memory can't deliver. So a finished tile is packed into 64 registers and ended
// piece by piece while the next one is multiplied (late_end.cuh). Two blocks form a cluster, of 256 rows as a rule: each
// brings half of the weight's rows, and the copy engine delivers them to both.
constexpr int kThreads = 384;
constexpr int kRows = 128;
constexpr int kColumns = 256;
constexpr int kDepth = 64;  ///< a swizzled row of 128 bytes
static_assert(kDepth == kWgmmaDepth);
constexpr int kStages = 4;
constexpr int kXBytes = kRows * kDepth * 2;
constexpr int kStageBytes = kXBytes + kColumns * kDepth * 2;
constexpr int kBytes = kStages * kStageBytes + 2 * kConstantBytes + 1024 + 256;  ///< constants of tiles, alignment, barriers
static_assert(kBytes == shared_bytes::kWgmmaLinear);
constexpr int kGroupRows = 2048;  ///< rows of x that share a column of the weight while it is in L2

struct WgmmaParams {
  CUtensorMap x, x_half;  ///< boxes of 128 rows and of 64
  CUtensorMap weight;     ///< a dealt_map in boxes of a block's share of the weight's rows
  GemmParams g;
  int tall, tiles_n, tiles;  ///< see WgmmaRounds
  int whole, parts;
  SplitSums split;
};

#ifdef TESSERA_WGMMA_HERE

/// What a block makes at a time: a tile, or steps [begin, end) of K of it.
struct Unit {
  int row, column;  ///< first row of x, first packed column
  bool wide;        ///< the neighbour has the same rows of x
  int begin, end;
  int split, part;  ///< number among the split tiles (-1: a whole tile), and which part
};

__device__ __forceinline__ int unit_count(const WgmmaParams& p) { return p.whole + (p.tiles - p.whole) * p.parts; }

/// Tiles go down the rows of a group first, then to the next column; wide ones come last.
template <int kCluster>
__device__ __forceinline__ Unit unit_at(const WgmmaParams& p, int index, int rank, int steps) {
  constexpr int kGroup = kGroupRows / (kRows * kCluster);
  Unit unit{.begin = 0, .end = steps, .split = -1, .part = 0};
  int tile = index;
  if (index >= p.whole) {
    unit.split = (index - p.whole) / p.parts;
    unit.part = (index - p.whole) % p.parts;
    tile = p.whole + unit.split;
    unit.begin = steps * unit.part / p.parts;
    unit.end = steps * (unit.part + 1) / p.parts;
  }
  const int tall = p.tall * p.tiles_n;
  unit.wide = kCluster > 1 && tile >= tall;
  if (unit.wide) {
    unit.row = p.tall * kCluster * kRows;
    unit.column = ((tile - tall) * kCluster + rank) * kColumns;
  } else {
    const int group = kGroup * p.tiles_n;
    const int first = tile / group * kGroup, rows = min(kGroup, p.tall - first), within = tile % group;
    unit.row = ((first + within % rows) * kCluster + rank) * kRows;
    unit.column = within / rows * kColumns;
  }
  return unit;
}

/// A cluster's units, in order: its part of a split tile, then whole tiles, `stride` apart. -1: none is left.
__device__ __forceinline__ int whole_unit(const WgmmaParams& p, int index) { return index < p.whole ? index : -1; }
__device__ __forceinline__ int first_unit(const WgmmaParams& p, int cluster) {
  return p.whole + cluster < unit_count(p) ? p.whole + cluster : whole_unit(p, cluster);
}
__device__ __forceinline__ int next_unit(const WgmmaParams& p, int unit, int cluster, int stride) {
  return whole_unit(p, unit >= p.whole ? cluster : unit + stride);
}

/// The addresses of a block's stages and of their barriers.
struct Ring {
  uint32_t base, barriers;
  __device__ __forceinline__ explicit Ring(const void* raw)
      : base((shared_address(raw) + 1023u) & ~1023u), barriers(base + kStages * kStageBytes) {}
  __device__ __forceinline__ uint32_t x(int s) const { return base + static_cast<uint32_t>(s) * kStageBytes; }
  __device__ __forceinline__ uint32_t weight(int s) const { return x(s) + kXBytes; }
  __device__ __forceinline__ uint32_t full(int s) const { return barriers + static_cast<uint32_t>(s) * 16; }
  __device__ __forceinline__ uint32_t empty(int s) const { return full(s) + 8; }
  __device__ __forceinline__ uint32_t constants(int group) const { return barriers + 256 + static_cast<uint32_t>(group) * kConstantBytes; }
};

/// One thread a block: brings the operands of the block's units in, in order. What both blocks of a cluster need, each
/// brings half of, and the copy engine delivers it to both.
template <int kCluster, int kRun>
struct Bringer {
  static constexpr int kShare = kColumns / kCluster;  ///< of the weight's rows, a copy
  static constexpr uint16_t kAll = (1u << kCluster) - 1;
  const WgmmaParams& p;
  const Ring& ring;
  int rank;

  __device__ __forceinline__ void weight(const Unit& unit, int k, int stage) const {
    if (kCluster == 1 || unit.wide) {
#pragma unroll
      for (int i = 0; i < kCluster; ++i)
        copy_dealt(ring.weight(stage) + i * kShare * kDepth * 2, &p.weight, k * kDepth, (unit.column + i * kShare) / (4 * kRun), ring.full(stage));
    } else {
      copy_dealt_to_cluster(ring.weight(stage) + static_cast<uint32_t>(rank) * (kShare * kDepth * 2), &p.weight, k * kDepth,
                            (unit.column + rank * kShare) / (4 * kRun), ring.full(stage), kAll);
    }
  }
  __device__ __forceinline__ void x(const Unit& unit, int k, int stage) const {
    if (kCluster > 1 && unit.wide)
      copy_box_to_cluster(ring.x(stage) + static_cast<uint32_t>(rank) * (kXBytes / kCluster), &p.x_half, k * kDepth,
                          unit.row + rank * (kRows / kCluster), ring.full(stage), kAll);
    else
      copy_box(ring.x(stage), &p.x, k * kDepth, unit.row, ring.full(stage));
  }

  __device__ __forceinline__ void run(int steps, int cluster, int stride) const {
    const int first = first_unit(p, cluster);
    // Weights are constant: those of the first stages come while the kernel ahead ends.
    int ahead = 0;
    if (first >= 0) {
      const Unit unit = unit_at<kCluster>(p, first, rank, steps);
      for (; ahead < min(kStages, unit.end - unit.begin); ++ahead) {
        barrier_expect(ring.full(ahead), kStageBytes);
        weight(unit, unit.begin + ahead, ahead);
      }
    }
    prefetch_map(&p.x);
    wait_for_previous();
    int stage = 0;
    uint32_t phase = 0;
    for (int u = first; u >= 0; u = next_unit(p, u, cluster, stride)) {
      const Unit unit = unit_at<kCluster>(p, u, rank, steps);
      for (int k = unit.begin; k < unit.end; ++k, --ahead) {
        if (ahead <= 0) {
          barrier_wait(ring.empty(stage), phase ^ 1);  // by the consumers of all blocks that this one writes to
          barrier_expect(ring.full(stage), kStageBytes);
          weight(unit, k, stage);
        }
        x(unit, k, stage);
        if (++stage == kStages) stage = 0, phase ^= 1;
      }
    }
  }
};

/// Where a warpgroup is in the ring.
struct Place {
  int stage = 0, before = 0;
  uint32_t phase = 0;
};

/// 64 of K: products are left running; those of the step before have been read, and their stage is given back. A product is
/// taken on when the one before is well under way, so what else there is to do comes in quarters behind each: `beside`.
template <class T, int kCluster, int kN, class Beside>
__device__ __forceinline__ void step(const Ring& ring, uint64_t first_operand, int own, bool first, Place& at, float* d, const Beside& beside) {
  barrier_wait(ring.full(at.stage), at.phase);
  const uint64_t x = first_operand + static_cast<uint32_t>(at.stage) * (kStageBytes >> 4) + own * (kXBytes / 2 >> 4);
  const uint64_t weight = first_operand + static_cast<uint32_t>(at.stage) * (kStageBytes >> 4) + (kXBytes >> 4);
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < kDepth / 16; ++j) {
    wgmma<T, kN>(d, x + 2 * j, weight + 2 * j, !first || j != 0);
    beside(j);
  }
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

template <int kCluster>
__device__ __forceinline__ void advance(const Ring& ring, bool first, Place& at) {
  wgmma_wait<1>();
  if (!first) release<kCluster>(ring, at.before);
  at.before = at.stage;
  if (++at.stage == kStages) at.stage = 0, at.phase ^= 1;
}

/// A split tile's sums have met: ends this part's share of its columns, behind what is pending.
template <class T, int kCluster, LateKind kKind>
__device__ __forceinline__ void end_split(const WgmmaParams& p, const Unit& unit, int rank, int own, LateEnd<T, kKind>& late) {
  const int block = unit.split * kCluster + rank;
  late.look_ahead(unit.row, unit.column);
  late.flush();
  late.find_factors(unit.row);
  wait_for_sums(p.split, block, own, p.parts);
  late.open(unit.row, unit.column);
#pragma unroll 1
  for (int slice = unit.part; slice < kSlices; slice += p.parts) {
    float sums[32];
    add_slice(p.split, block, own, p.parts, slice, sums);
    late.end_group_now(unit.row, unit.column, slice, sums);
  }
  late.close();
}

/// One warpgroup's 64 rows of the block's tiles.
template <class T, int kCluster, LateKind kKind>
__device__ __forceinline__ void multiply(const WgmmaParams& p, const Ring& ring, int steps, int cluster, int stride, int own) {
  const int rank = kCluster == 1 ? 0 : static_cast<int>(cluster_rank());
  const uint64_t first_operand = operand(ring.base);
  const int row_in_tile = own * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4, first = first_unit(p, cluster);
  using End = LateEnd<T, kKind>;
  End late(p.g, ring.constants(own), own, row_in_tile);
  Place at;
  int unsaid = -1;  ///< a block of split tiles whose sums are written, but not announced
#pragma unroll 1
  for (int u = first; u >= 0; u = next_unit(p, u, cluster, stride)) {
    const Unit unit = unit_at<kCluster>(p, u, rank, steps);
    const int count = unit.end - unit.begin;
    float d[kColumns / 2];
    int k = 0;
    bool found = false;
    if (unit.split < 0) late.look_ahead(unit.row, unit.column);
#pragma unroll 1
    for (; late.pending() && k + End::kPieces <= count; late.move_up()) {
      if (late.last_group()) late.find_factors(unit.row), found = true;
#pragma unroll
      for (int piece = 0; piece < End::kPieces; ++piece, ++k) {
        step<T, kCluster, kColumns>(ring, first_operand, own, k == 0, at, d, [&](int quarter) { late.end(piece, quarter); });
        advance<kCluster>(ring, k == 0, at);
      }
    }
    late.flush();
#pragma unroll 1
    for (; k < count; ++k) {
      step<T, kCluster, kColumns>(ring, first_operand, own, k == 0, at, d, [](int) {});
      advance<kCluster>(ring, k == 0, at);
    }
    wgmma_wait<0>();
    release<kCluster>(ring, at.before);
    if (unit.split < 0) {
      if (unsaid >= 0) announce_sums(p.split, unsaid, own), unsaid = -1;
      if (!found) late.find_factors(unit.row);
      late.take(unit.row, unit.column, d);
    } else {
      unsaid = unit.split * kCluster + rank;
      send_sums(p.split, unsaid, own, unit.part, p.parts, d);
    }
  }
  if (unsaid >= 0) announce_sums(p.split, unsaid, own);
  if (first >= p.whole)
    end_split<T, kCluster, kKind>(p, unit_at<kCluster>(p, first, rank, steps), rank, own, late);
  else
    late.flush();
}

#endif

template <class T, int kCluster, LateKind kKind>
__global__ __launch_bounds__(kThreads, 1) void wgmma_linear_kernel(const __grid_constant__ WgmmaParams p) {
#ifdef TESSERA_WGMMA_HERE
  extern __shared__ unsigned char raw[];
  const Ring ring(raw);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(ring.full(s), 1);
      barrier_init(ring.empty(s), 2 * kCluster);
    }
    barrier_publish();
  }
  if constexpr (kCluster > 1)
    cluster_sync();
  else
    __syncthreads();
  const int steps = static_cast<int>((p.g.k + kDepth - 1) / kDepth);
  const int cluster = static_cast<int>(blockIdx.x) / kCluster, stride = static_cast<int>(gridDim.x) / kCluster;
  // By a shuffle, so that the compiler knows that a warp agrees on it and keeps what follows in uniform registers.
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == 0) {
    give_registers<24>();
    if (threadIdx.x == 0) Bringer<kCluster, lane_columns(kKind)>{p, ring, kCluster == 1 ? 0 : static_cast<int>(cluster_rank())}.run(steps, cluster, stride);
    __syncwarp();  // the cluster's barrier wants whole warps
  } else {
    take_registers<240>();
    wait_for_previous();
    multiply<T, kCluster, kKind>(p, ring, steps, cluster, stride, group - 1);
  }
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
  static const int64_t kResident = resident_clusters(reinterpret_cast<const void*>(wgmma_linear_kernel<T, kCluster, LateKind::kHalf>),
                                                     kThreads, kBytes, kCluster);
  DeviceLimits limits = s.device.limits;
  limits.multiprocessors = std::min<int64_t>(limits.multiprocessors, kResident * kCluster);
  const WgmmaRounds rounds = wgmma_rounds(limits, g.m, g.packed_rows, g.k);
  const WgmmaParams p{.x = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, kRows),
                      .x_half = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, kRows / 2),
                      .weight = dealt_map(dtype, g.weight, g.packed_rows, g.k, g.weight_stride, kColumns / kCluster, lane_columns(late_kind(g))),
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
  switch (late_kind(g)) {
    case LateKind::kNone: return launch(wgmma_linear_kernel<T, kCluster, LateKind::kNone>);
    case LateKind::kHalf: return launch(wgmma_linear_kernel<T, kCluster, LateKind::kHalf>);
    case LateKind::kGelu: return launch(wgmma_linear_kernel<T, kCluster, LateKind::kGelu>);
    case LateKind::kGated: return launch(wgmma_linear_kernel<T, kCluster, LateKind::kGated>);
    case LateKind::kFloat: return launch(wgmma_linear_kernel<T, kCluster, LateKind::kFloat>);
    case LateKind::kStream: return launch(wgmma_linear_kernel<T, kCluster, LateKind::kStream>);
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
