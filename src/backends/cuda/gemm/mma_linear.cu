#include "backends/cuda/fast.cuh"
#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// 128 x 128 outputs a block, 64 x 32 a warp (8 warps), K in pieces of 32, three stages: 48 KB, the most that every
// device of this family gives without asking. Two blocks fit a multiprocessor by registers (128 a thread).
constexpr int kThreads = 256;
constexpr int kTile = 128;
constexpr int kDepth = 32;
constexpr int kStages = 3;
constexpr int kTileBytes = kTile * kDepth * 2;
static_assert(kStages * 2 * kTileBytes == shared_bytes::kMmaLinear);

/// Byte offset of a 16-byte piece in a tile of 64-byte rows. Two rows share a line of the 32 banks; the exclusive or
/// spreads the 8 rows that ldmatrix reads together over all of them.
__device__ __forceinline__ uint32_t piece(int row, int chunk) {
  return static_cast<uint32_t>(row * 64 + ((chunk ^ (row >> 1)) & 3) * 16);
}

template <class T>
__device__ __forceinline__ void load_stage(const GemmParams& p, int64_t row0, int64_t packed0, int64_t k0, uint32_t a,
                                           uint32_t b) {
  // 128 rows of 4 pieces for each operand: two pieces a thread.
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int index = threadIdx.x + i * kThreads, row = index / 4, chunk = index % 4;
    const int64_t k = k0 + chunk * 8;
    const bool in_k = k < p.k;
    const bool in_x = in_k && row0 + row < p.m, in_w = in_k && packed0 + row < p.packed_rows;
    const T* x = static_cast<const T*>(p.x) + (in_x ? (row0 + row) * p.x_stride + k : 0);
    const T* w = static_cast<const T*>(p.weight) + (in_w ? (packed0 + row) * p.weight_stride + k : 0);
    copy_async(a + piece(row, chunk), x, in_x);
    copy_async(b + piece(row, chunk), w, in_w);
  }
}

template <class T>
__global__ __launch_bounds__(kThreads, 2) void mma_linear_kernel(GemmParams p) {
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t base = shared_address(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kTile, packed0 = static_cast<int64_t>(blockIdx.y) * kTile;
  auto stage_a = [&](int s) { return base + static_cast<uint32_t>(s) * 2 * kTileBytes; };
  auto stage_b = [&](int s) { return stage_a(s) + kTileBytes; };
  wait_for_previous();

  float sum[4][4][4] = {};
  const int steps = static_cast<int>((p.k + kDepth - 1) / kDepth);
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) load_stage<T>(p, row0, packed0, static_cast<int64_t>(s) * kDepth, stage_a(s), stage_b(s));
    copy_commit();
  }
  for (int step = 0; step < steps; ++step) {
    copy_wait<kStages - 2>();
    __syncthreads();
    const int next = step + kStages - 1;
    if (next < steps)
      load_stage<T>(p, row0, packed0, static_cast<int64_t>(next) * kDepth, stage_a(next % kStages), stage_b(next % kStages));
    copy_commit();
    const uint32_t a0 = stage_a(step % kStages), b0 = stage_b(step % kStages);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        load_matrix_x4(a[i], a0 + piece(warp_m + i * 16 + lane % 16, half * 2 + lane / 16));
      // One x4 of the weight: rows n .. n + 15 at both halves of k: registers 0, 1 are the first 8 rows, 2, 3 the next.
#pragma unroll
      for (int j = 0; j < 2; ++j)
        load_matrix_x4(b[j], b0 + piece(warp_n + j * 16 + lane / 16 * 8 + lane % 8, half * 2 + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) mma<T>(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
  let_next_start();

  const int q = lane % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = row0 + warp_m + i * 16 + lane / 4;
    finish_any<T, 4>(p.end, EndKind(p.end_kind), p.gated, p.gelu, row, p.m, packed0 + warp_n, 2 * q, &sum[i][0][0]);
  }
}

}  // namespace

void mma_linear(Stream& stream, DType dtype, const GemmParams& params) {
  GemmParams p = params;
  p.end_kind = static_cast<uint8_t>(end_kind(p.end, dtype));
  // Rows vary fastest: the blocks that run together share a few columns of the weight, which stay in L2.
  const Grid grid{plain::blocks_for(p.m, kTile), plain::blocks_for(p.packed_rows, kTile)};
  dispatch_half(dtype, "linear", [&](auto zero) {
    launch_fast(stream, "mma_linear", grid, kThreads, shared_bytes::kMmaLinear, mma_linear_kernel<decltype(zero)>, p);
  });
}

}  // namespace tessera::cuda
