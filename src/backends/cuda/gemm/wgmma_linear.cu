#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// Persistent blocks make 128 x 128 outputs at a time. One warpgroup brings operands in with bulk tensor copies; two take
// tiles in turns: while one finishes its tile (bias, GELU, residual, stores), the other multiplies, so that the tensor
// cores never wait for an epilogue, which at K = 1024 takes as long as the product. Two blocks form a cluster that makes
// 256 x 128: each brings half of the weight's rows and the copy engine delivers them to both, or the operands of such
// small tiles would be more than L2 can feed.
constexpr int kThreads = 384;
constexpr int kTile = 128;
constexpr int kDepth = 64;  ///< a swizzled row of 128 bytes
constexpr int kStages = 6;
constexpr int kOperandBytes = kTile * kDepth * 2;
constexpr int kBytes = kStages * 2 * kOperandBytes + 1024 + 256;  ///< alignment and barriers
static_assert(kBytes == shared_bytes::kWgmmaLinear);
constexpr int kGroupRows = 2048;  ///< rows of x that share a column of the weight while it is in L2

struct WgmmaParams {
  CUtensorMap x, weight;
  GemmParams g;
  int tiles_m, tiles_n;  ///< of clusters
};

#ifdef TESSERA_WGMMA_HERE

/// Tiles go down the rows of a group first, then to the next column.
template <int kCluster>
__device__ __forceinline__ void tile_at(const WgmmaParams& p, int index, int* m, int* n) {
  constexpr int kGroup = kGroupRows / (kTile * kCluster);
  const int whole = kGroup * p.tiles_n;
  const int first = index / whole * kGroup, rows = min(kGroup, p.tiles_m - first), within = index % whole;
  *m = first + within % rows;
  *n = within / rows;
}

/// 64 rows of a warpgroup's tile to their places.
template <class T>
__device__ __forceinline__ void finish_half_tile(const GemmParams& g, int64_t row0, int64_t packed0, const float* d) {
  const int lane = threadIdx.x % 32, q = lane % 4;
  const int64_t row = row0 + threadIdx.x % 128 / 32 * 16 + lane / 4;
  // Eight tiles at a time: their biases, scales and residuals take 64 registers.
#pragma unroll
  for (int j = 0; j < kTile / 8; j += 8)
    finish_any<T, 8>(g.end, EndKind(g.end_kind), g.gated, g.gelu, row, g.m, packed0 + j * 8, 2 * q, d + 4 * j);
}

/// The addresses of a block's stages and of their barriers.
struct Ring {
  uint32_t base, barriers;
  __device__ __forceinline__ explicit Ring(const void* raw)
      : base((shared_address(raw) + 1023u) & ~1023u), barriers(base + kStages * 2 * kOperandBytes) {}
  __device__ __forceinline__ uint32_t x(int s) const { return base + static_cast<uint32_t>(s) * 2 * kOperandBytes; }
  __device__ __forceinline__ uint32_t weight(int s) const { return x(s) + kOperandBytes; }
  __device__ __forceinline__ uint32_t full(int s) const { return barriers + static_cast<uint32_t>(s) * 16; }
  __device__ __forceinline__ uint32_t empty(int s) const { return full(s) + 8; }
};

/// One thread a block: brings the operands of the cluster's tiles in, in order.
template <int kCluster>
__device__ __forceinline__ void bring(const WgmmaParams& p, const Ring& ring, int steps, int first, int stride) {
  constexpr int kWeightRows = kTile / kCluster;
  const int rank = kCluster == 1 ? 0 : static_cast<int>(cluster_rank());
  const int tiles = p.tiles_m * p.tiles_n;
  int stage = 0;
  uint32_t phase = 0;
  for (int t = first; t < tiles; t += stride) {
    int m, n;
    tile_at<kCluster>(p, t, &m, &n);
    for (int k = 0; k < steps; ++k) {
      barrier_wait(ring.empty(stage), phase ^ 1);  // by the consumers of all blocks that this one writes to
      barrier_expect(ring.full(stage), 2 * kOperandBytes);
      copy_box(ring.x(stage), &p.x, k * kDepth, (m * kCluster + rank) * kTile, ring.full(stage));
      const uint32_t to = ring.weight(stage) + static_cast<uint32_t>(rank) * kWeightRows * kDepth * 2;
      if constexpr (kCluster == 1)
        copy_box(to, &p.weight, k * kDepth, n * kTile, ring.full(stage));
      else
        copy_box_to_cluster(to, &p.weight, k * kDepth, n * kTile + rank * kWeightRows, ring.full(stage), (1u << kCluster) - 1);
      if (++stage == kStages) stage = 0, phase ^= 1;
    }
  }
}

/// One warpgroup's tiles: every second of the block's.
template <class T, int kCluster>
__device__ __forceinline__ void multiply(const WgmmaParams& p, const Ring& ring, int steps, int first, int stride, int own) {
  const int tiles = p.tiles_m * p.tiles_n;
  const int rank = kCluster == 1 ? 0 : static_cast<int>(cluster_rank());
  const uint32_t lane = threadIdx.x % 128;
  // A stage is free when it has been read here and, for the half that the neighbour sent, there, too: tell both.
  auto release = [&](int s) {
    if (lane < kCluster) kCluster == 1 ? barrier_arrive(ring.empty(s)) : barrier_arrive_at(ring.empty(s), lane);
  };
  for (int i = own; first + i * stride < tiles; i += 2) {
    const int t = first + i * stride;
    int m, n;
    tile_at<kCluster>(p, t, &m, &n);
    const unsigned done = static_cast<unsigned>(i) * static_cast<unsigned>(steps);
    int stage = static_cast<int>(done % kStages);
    uint32_t phase = done / kStages & 1;
    float d[2][kTile / 2];
    int before = 0;
    if (i > 0) named_barrier_sync(1 + own, 256);  // the other's products have all been issued
    for (int k = 0; k < steps; ++k) {
      barrier_wait(ring.full(stage), phase);
      const uint64_t a = operand(ring.x(stage)), b = operand(ring.weight(stage));
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < kDepth / 16; ++j) {
        wgmma<T, kTile>(d[0], a + 2 * j, b + 2 * j, (k | j) != 0);
        wgmma<T, kTile>(d[1], a + (64 * kDepth * 2 >> 4) + 2 * j, b + 2 * j, (k | j) != 0);
      }
      wgmma_commit();
      wgmma_wait<1>();  // the step before has been read
      if (k > 0) release(before);
      before = stage;
      if (++stage == kStages) stage = 0, phase ^= 1;
    }
    if (t + stride < tiles) named_barrier_arrive(2 - own, 256);
    wgmma_wait<0>();
    release(before);
    const int64_t row0 = static_cast<int64_t>(m * kCluster + rank) * kTile;
#pragma unroll
    for (int h = 0; h < 2; ++h) finish_half_tile<T>(p.g, row0 + 64 * h, static_cast<int64_t>(n) * kTile, d[h]);
  }
}

#endif

template <class T, int kCluster>
__global__ __launch_bounds__(kThreads, 1) void wgmma_linear_kernel(const __grid_constant__ WgmmaParams p) {
#ifdef TESSERA_WGMMA_HERE
  extern __shared__ unsigned char raw[];
  const Ring ring(raw);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(ring.full(s), 1);
      barrier_init(ring.empty(s), kCluster);
    }
    barrier_publish();
  }
  if constexpr (kCluster > 1)
    cluster_sync();
  else
    __syncthreads();
  const int steps = static_cast<int>((p.g.k + kDepth - 1) / kDepth);
  const int first = static_cast<int>(blockIdx.x) / kCluster, stride = static_cast<int>(gridDim.x) / kCluster;
  const int group = threadIdx.x / 128;
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
    multiply<T, kCluster>(p, ring, steps, first, stride, group - 1);
  }
  let_next_start();
  if constexpr (kCluster > 1) cluster_sync();  // the neighbour may still write here
#endif
}

template <class T, int kCluster>
void run(Stream& stream, DType dtype, GemmParams g) {
  g.end_kind = static_cast<uint8_t>(end_kind(g.end, dtype));
  constexpr int kRows = kTile * kCluster;
  const WgmmaParams p{.x = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, kTile),
                      .weight = tensor_map(dtype, g.weight, g.packed_rows, g.k, g.weight_stride, kTile / kCluster),
                      .g = g,
                      .tiles_m = static_cast<int>((g.m + kRows - 1) / kRows),
                      .tiles_n = static_cast<int>((g.packed_rows + kTile - 1) / kTile)};
  const auto sms = static_cast<unsigned>(cuda_stream(stream).device.limits.multiprocessors);
  const unsigned clusters = std::min(sms / kCluster, static_cast<unsigned>(p.tiles_m * p.tiles_n));
  launch_fast(stream, "wgmma_linear", Grid{clusters * kCluster}, kThreads, kBytes, wgmma_linear_kernel<T, kCluster>, p,
              {.overlap = true, .cluster = kCluster});
}

}  // namespace

void wgmma_linear(Stream& stream, DType dtype, const GemmParams& p) {
  dispatch_half(dtype, "linear", [&](auto zero) {
    using T = decltype(zero);
    // The second block of a cluster would have no rows.
    if (p.m <= kTile)
      run<T, 1>(stream, dtype, p);
    else
      run<T, 2>(stream, dtype, p);
  });
}

}  // namespace tessera::cuda
