#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/gemm/late_end.cuh"
#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/wgmma_rounds.h"

namespace tessera::cuda {
namespace {

// Persistent blocks make 128 x 256 outputs at a time. One warpgroup brings operands in with bulk tensor copies, two
// multiply, 64 rows each; 256 columns are the widest wgmma, so each byte that reaches shared memory serves the most
// multiply-adds. At K = 1024 the end of a tile (bias, GELU, residual, stores) takes as long as its product, and tiles in
// turns would need operands that shared memory can't deliver. So a finished tile is packed into 64 registers and ended
// piece by piece while the next one is multiplied (late_end.cuh). Two blocks form a cluster of 256 rows: each brings half
// of the weight's rows, and the copy engine delivers them to both.
constexpr int kThreads = 384;
constexpr int kRows = 128;
constexpr int kColumns = 256;
constexpr int kNarrow = 64;  ///< columns of the pieces that the tiles of a last, mostly empty round are cut into
constexpr int kDepth = 64;  ///< a swizzled row of 128 bytes
constexpr int kStages = 4;
constexpr int kXBytes = kRows * kDepth * 2;
constexpr int kStageBytes = kXBytes + kColumns * kDepth * 2;
constexpr int kBytes = kStages * kStageBytes + 1024 + 256;  ///< alignment and barriers
static_assert(kBytes == shared_bytes::kWgmmaLinear);
constexpr int kGroupRows = 2048;  ///< rows of x that share a column of the weight while it is in L2

struct WgmmaParams {
  CUtensorMap x, weight, weight_narrow;
  GemmParams g;
  int tiles_m, tiles_n;  ///< of clusters
  int whole;             ///< the first tiles are made whole; the others in narrow pieces
};

#ifdef TESSERA_WGMMA_HERE

/// What a cluster makes at a time.
struct Unit {
  int m;       ///< row of tiles
  int column;  ///< first packed column
  bool narrow;
};

__device__ __forceinline__ int unit_count(const WgmmaParams& p) {
  return p.whole + (p.tiles_m * p.tiles_n - p.whole) * (kColumns / kNarrow);
}

/// Tiles go down the rows of a group first, then to the next column.
template <int kCluster>
__device__ __forceinline__ Unit unit_at(const WgmmaParams& p, int index) {
  constexpr int kGroup = kGroupRows / (kRows * kCluster), kParts = kColumns / kNarrow;
  const bool narrow = index >= p.whole;
  const int tile = narrow ? p.whole + (index - p.whole) / kParts : index;
  const int part = narrow ? (index - p.whole) % kParts : 0;
  const int group = kGroup * p.tiles_n;
  const int first = tile / group * kGroup, rows = min(kGroup, p.tiles_m - first), within = tile % group;
  return {first + within % rows, within / rows * kColumns + part * kNarrow, narrow};
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
};

/// One thread a block: brings the operands of the cluster's units in, in order.
template <int kCluster>
__device__ __forceinline__ void bring(const WgmmaParams& p, const Ring& ring, int steps, int first, int stride) {
  const int rank = kCluster == 1 ? 0 : static_cast<int>(cluster_rank());
  const int units = unit_count(p);
  int stage = 0;
  uint32_t phase = 0;
  for (int u = first; u < units; u += stride) {
    const Unit unit = unit_at<kCluster>(p, u);
    const CUtensorMap* const weight = unit.narrow ? &p.weight_narrow : &p.weight;
    const int share = (unit.narrow ? kNarrow : kColumns) / kCluster;  // of the weight's rows
    const auto bytes = static_cast<uint32_t>(kXBytes + share * kCluster * kDepth * 2);
    for (int k = 0; k < steps; ++k) {
      barrier_wait(ring.empty(stage), phase ^ 1);  // by the consumers of all blocks that this one writes to
      barrier_expect(ring.full(stage), bytes);
      copy_box(ring.x(stage), &p.x, k * kDepth, (unit.m * kCluster + rank) * kRows, ring.full(stage));
      const uint32_t to = ring.weight(stage) + static_cast<uint32_t>(rank * share) * kDepth * 2;
      if constexpr (kCluster == 1)
        copy_box(to, weight, k * kDepth, unit.column, ring.full(stage));
      else
        copy_box_to_cluster(to, weight, k * kDepth, unit.column + rank * share, ring.full(stage), (1u << kCluster) - 1);
      if (++stage == kStages) stage = 0, phase ^= 1;
    }
  }
}

/// Where a warpgroup is in the ring.
struct Place {
  int stage = 0, before = 0;
  uint32_t phase = 0;
};

/// 64 of K: products are left running; those of the step before have been read, and their stage is given back.
template <class T, int kCluster, int kN>
__device__ __forceinline__ void step(const Ring& ring, uint64_t first_operand, int own, bool first, Place& at, float* d) {
  barrier_wait(ring.full(at.stage), at.phase);
  const uint64_t x = first_operand + static_cast<uint32_t>(at.stage) * (kStageBytes >> 4) + own * (kXBytes / 2 >> 4);
  const uint64_t weight = first_operand + static_cast<uint32_t>(at.stage) * (kStageBytes >> 4) + (kXBytes >> 4);
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < kDepth / 16; ++j) wgmma<T, kN>(d, x + 2 * j, weight + 2 * j, !first || j != 0);
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

/// One warpgroup's 64 rows of the block's tiles.
template <class T, int kCluster, LateKind kKind>
__device__ __forceinline__ void multiply(const WgmmaParams& p, const Ring& ring, int steps, int first, int stride, int own) {
  const int units = unit_count(p);
  const int rank = kCluster == 1 ? 0 : static_cast<int>(cluster_rank());
  const uint64_t first_operand = operand(ring.base);
  const int row_in_tile = own * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  using End = LateEnd<T, kKind>;
  End late(p.g);
  Place at;
  auto finish = [&] {
    wgmma_wait<0>();
    release<kCluster>(ring, at.before);
  };
  for (int u = first; u < units; u += stride) {
    const Unit unit = unit_at<kCluster>(p, u);
    const int64_t row = static_cast<int64_t>(unit.m * kCluster + rank) * kRows + row_in_tile;
    float d[kColumns / 2];
    if (unit.narrow) {
      late.flush();
      for (int k = 0; k < steps; ++k) {
        step<T, kCluster, kNarrow>(ring, first_operand, own, k == 0, at, d);
        advance<kCluster>(ring, k == 0, at);
      }
      finish();
      late.template end_now<kNarrow / 8>(row, unit.column, d);
      continue;
    }
    int k = 0;
    if (late.pending()) {
      late.prefetch_first();
#pragma unroll
      for (int piece = 0; piece < End::kPieces; ++piece) {
        if (k < steps) step<T, kCluster, kColumns>(ring, first_operand, own, piece == 0, at, d);
        late.end(piece);
        if (k < steps) advance<kCluster>(ring, piece == 0, at);
        ++k;
      }
    }
    for (; k < steps; ++k) {
      step<T, kCluster, kColumns>(ring, first_operand, own, k == 0, at, d);
      advance<kCluster>(ring, k == 0, at);
    }
    finish();
    late.take(row, unit.column, d);
  }
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
  const int first = static_cast<int>(blockIdx.x) / kCluster, stride = static_cast<int>(gridDim.x) / kCluster;
  // By a shuffle, so that the compiler knows that a warp agrees on it and keeps what follows in uniform registers.
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == 0) {
    give_registers<24>();
    if (threadIdx.x == 0) {
      wait_for_previous();
      bring<kCluster>(p, ring, steps, first, stride);
    }
    __syncwarp();  // the cluster's barrier wants whole warps
  } else {
    take_registers<240>();
    wait_for_previous();
    multiply<T, kCluster, kKind>(p, ring, steps, first, stride, group - 1);
  }
  let_next_start();
  if constexpr (kCluster > 1) cluster_sync();  // the neighbour may still write here
#endif
}

template <class T, int kCluster>
void run(Stream& stream, DType dtype, const GemmParams& g) {
  const WgmmaRounds rounds = wgmma_rounds(cuda_stream(stream).device.limits, g.m, g.packed_rows);
  auto weight = [&](int rows) { return tensor_map(dtype, g.weight, g.packed_rows, g.k, g.weight_stride, rows / kCluster); };
  const WgmmaParams p{.x = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, kRows),
                      .weight = weight(kColumns),
                      .weight_narrow = weight(kNarrow),
                      .g = g,
                      .tiles_m = static_cast<int>(rounds.tiles_m),
                      .tiles_n = static_cast<int>(rounds.tiles_n),
                      .whole = static_cast<int>(rounds.whole)};
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
  }
}

}  // namespace

void wgmma_linear(Stream& stream, DType dtype, const GemmParams& params) {
  GemmParams p = params;
  p.end_kind = static_cast<uint8_t>(end_kind(p.end, dtype));
  dispatch_half(dtype, "linear", [&](auto zero) {
    using T = decltype(zero);
    if (wgmma_cluster(p.m) == 1)
      run<T, 1>(stream, dtype, p);
    else
      run<T, 2>(stream, dtype, p);
  });
}

}  // namespace tessera::cuda
