#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// A persistent block a multiprocessor makes 128 x kTileN outputs at a time. One warpgroup brings operands in with bulk
// tensor copies, two multiply, 64 rows each. 256 columns are the widest wgmma: each byte of the weight in shared memory
// serves the most multiply-adds. Small products take 128 columns, for more tiles than multiprocessors.
constexpr int kThreads = 384;
constexpr int kRows = 128;
constexpr int kDepth = 64;  ///< a swizzled row of 128 bytes
constexpr int kGroup = 16;  ///< row tiles that share a column of the weight while it is in L2

template <int kTileN>
struct Shape {
  static constexpr int kABytes = kRows * kDepth * 2;
  static constexpr int kBBytes = kTileN * kDepth * 2;
  static constexpr int kStages = kTileN == 256 ? 4 : 6;
  static constexpr int kBytes = kStages * (kABytes + kBBytes) + 1024 + 256;  ///< alignment and barriers
  static_assert(kBytes == shared_bytes::kWgmmaLinear);
};

struct WgmmaParams {
  CUtensorMap x, weight;
  GemmParams g;
  int tiles_m, tiles_n;
};

#ifdef TESSERA_WGMMA_HERE

/// Tiles go down the rows of a group first, then to the next column.
__device__ __forceinline__ void tile_at(const WgmmaParams& p, int index, int* m, int* n) {
  const int whole = kGroup * p.tiles_n;
  const int first = index / whole * kGroup, rows = min(kGroup, p.tiles_m - first), within = index % whole;
  *m = first + within % rows;
  *n = within / rows;
}

template <class T, int kTileN>
__device__ __forceinline__ void finish_tile(const GemmParams& g, int64_t row0, int64_t packed0, const float* d) {
  const int lane = threadIdx.x % 32, q = lane % 4;
  const int64_t row = row0 + threadIdx.x % 128 / 32 * 16 + lane / 4;
  // Eight tiles at a time: their biases, scales and residuals take 64 registers.
#pragma unroll
  for (int j = 0; j < kTileN / 8; j += 8)
    finish_any<T, 8>(g.end, EndKind(g.end_kind), g.gated, g.gelu, row, g.m, packed0 + j * 8, 2 * q, d + 4 * j);
}

#endif

template <class T, int kTileN>
__global__ __launch_bounds__(kThreads, 1) void wgmma_linear_kernel(const __grid_constant__ WgmmaParams p) {
#ifdef TESSERA_WGMMA_HERE
  using S = Shape<kTileN>;
  extern __shared__ unsigned char raw[];
  const uint32_t base = (shared_address(raw) + 1023u) & ~1023u;
  const uint32_t barriers = base + S::kStages * (S::kABytes + S::kBBytes);
  auto a_at = [&](int s) { return base + static_cast<uint32_t>(s) * (S::kABytes + S::kBBytes); };
  auto b_at = [&](int s) { return a_at(s) + S::kABytes; };
  auto full = [&](int s) { return barriers + static_cast<uint32_t>(s) * 16; };
  auto empty = [&](int s) { return barriers + static_cast<uint32_t>(s) * 16 + 8; };
  const int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < S::kStages; ++s) {
      barrier_init(full(s), 1);
      barrier_init(empty(s), 2);
    }
    barrier_publish();
  }
  __syncthreads();
  const int tiles = p.tiles_m * p.tiles_n;
  const int steps = static_cast<int>((p.g.k + kDepth - 1) / kDepth);
  int stage = 0;
  uint32_t phase = 0;

  if (group == 0) {
    give_registers<40>();
    if (threadIdx.x == 0) {
      wait_for_previous();
      for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
        int m, n;
        tile_at(p, t, &m, &n);
        for (int k = 0; k < steps; ++k) {
          barrier_wait(empty(stage), phase ^ 1);
          barrier_expect(full(stage), S::kABytes + S::kBBytes);
          copy_box(a_at(stage), &p.x, k * kDepth, m * kRows, full(stage));
          copy_box(b_at(stage), &p.weight, k * kDepth, n * kTileN, full(stage));
          if (++stage == S::kStages) stage = 0, phase ^= 1;
        }
      }
    }
  } else {
    take_registers<232>();
    wait_for_previous();
    const int own = (group - 1) * 64;
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
      int m, n;
      tile_at(p, t, &m, &n);
      float d[kTileN / 2];
      int before = 0;
      for (int k = 0; k < steps; ++k) {
        barrier_wait(full(stage), phase);
        const uint64_t a = operand(a_at(stage) + own * 128), b = operand(b_at(stage));
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kDepth / 16; ++i) wgmma<T, kTileN>(d, a + 2 * i, b + 2 * i, (k | i) != 0);
        wgmma_commit();
        wgmma_wait<1>();  // the step before has been read
        if (k > 0 && threadIdx.x % 128 == 0) barrier_arrive(empty(before));
        before = stage;
        if (++stage == S::kStages) stage = 0, phase ^= 1;
      }
      wgmma_wait<0>();
      if (threadIdx.x % 128 == 0) barrier_arrive(empty(before));
      finish_tile<T, kTileN>(p.g, static_cast<int64_t>(m) * kRows + own, static_cast<int64_t>(n) * kTileN, d);
    }
  }
  let_next_start();
#endif
}

template <class T, int kTileN>
void run(Stream& stream, DType dtype, GemmParams g) {
  g.end_kind = static_cast<uint8_t>(end_kind(g.end, dtype));
  WgmmaParams p{.x = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, kRows),
                .weight = tensor_map(dtype, g.weight, g.packed_rows, g.k, g.weight_stride, kTileN),
                .g = g,
                .tiles_m = static_cast<int>((g.m + kRows - 1) / kRows),
                .tiles_n = static_cast<int>((g.packed_rows + kTileN - 1) / kTileN)};
  const auto sms = static_cast<unsigned>(cuda_stream(stream).device.limits.multiprocessors);
  const Grid grid{std::min(sms, static_cast<unsigned>(p.tiles_m * p.tiles_n))};
  launch_fast(stream, "wgmma_linear", grid, kThreads, Shape<kTileN>::kBytes, wgmma_linear_kernel<T, kTileN>, p);
}

}  // namespace

void wgmma_linear(Stream& stream, DType dtype, const GemmParams& p) {
  // Rounds of the whole device, in units of 128 columns: narrow tiles win where wide ones leave a round mostly empty.
  const int64_t sms = std::max<int64_t>(1, cuda_stream(stream).device.limits.multiprocessors);
  const int64_t rows = (p.m + kRows - 1) / kRows;
  const int64_t wide = 2 * ((rows * ((p.packed_rows + 255) / 256) + sms - 1) / sms);
  const int64_t narrow = (rows * ((p.packed_rows + 127) / 128) + sms - 1) / sms;
  dispatch_half(dtype, "linear", [&](auto zero) {
    using T = decltype(zero);
    // A narrow tile takes about 1.15 times its share: operands are used half as often.
    if (static_cast<double>(narrow) * 1.15 < static_cast<double>(wide))
      run<T, 128>(stream, dtype, p);
    else
      run<T, 256>(stream, dtype, p);
  });
}

}  // namespace tessera::cuda
