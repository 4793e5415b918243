#include "backends/cuda/fast.cuh"
#include "backends/cuda/gemm/gemm.h"

namespace tessera::cuda {
namespace {

// A block makes 16 packed rows for up to 8 * kTiles tokens; its 8 warps share K and add up in shared memory. The
// weight is the 16-row operand of mma.sync, the tokens are its 8 columns. The sum over k may run in any order, so a
// lane takes 8 neighbouring k of its row (16 bytes, one load) as its share of two steps, and the tokens' lanes take the
// same k: no shared memory, no shuffles, whole sectors.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kPiece = 32;   ///< k of one load: 4 lanes of 8
constexpr int kUnroll = 4;   ///< loads in flight a lane and row

template <class T, int kTiles>
__global__ __launch_bounds__(kThreads) void skinny_kernel(GemmParams p) {
  __shared__ float partial[kWarps][kTiles][4][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int64_t packed0 = static_cast<int64_t>(blockIdx.x) * 16;
  const T* weight = static_cast<const T*>(p.weight) + (packed0 + g) * p.weight_stride + q * 8;
  const T* below = weight + 8 * p.weight_stride;
  const T* x = static_cast<const T*>(p.x) + q * 8;
  const uint4 zero = make_uint4(0, 0, 0, 0);

  float sum[kTiles][4] = {};
  uint4 w0[kUnroll], w1[kUnroll];
  auto load = [&](int64_t k) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = k + u * kPiece;
      const bool inside = at + q * 8 < p.k;
      w0[u] = inside ? __ldcs(reinterpret_cast<const uint4*>(weight + at)) : zero;
      w1[u] = inside ? __ldcs(reinterpret_cast<const uint4*>(below + at)) : zero;
    }
  };
  constexpr int64_t kStep = static_cast<int64_t>(kUnroll) * kPiece;
  int64_t k = warp * kStep;
  if (k < p.k) load(k);  // weights are constant: they travel while the kernel ahead ends
  wait_for_previous();
  for (; k < p.k; k += kWarps * kStep) {
    uint4 a0[kUnroll], a1[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      a0[u] = w0[u];
      a1[u] = w1[u];
    }
    uint4 b[kTiles][kUnroll];
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t at = k + u * kPiece;
        const bool inside = t * 8 + g < p.m && at + q * 8 < p.k;
        b[t][u] = inside ? *reinterpret_cast<const uint4*>(x + (t * 8 + g) * p.x_stride + at) : zero;
      }
    if (k + kWarps * kStep < p.k) load(k + kWarps * kStep);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint32_t first[4] = {a0[u].x, a1[u].x, a0[u].y, a1[u].y};
      const uint32_t second[4] = {a0[u].z, a1[u].z, a0[u].w, a1[u].w};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        mma<T>(sum[t], first, b[t][u].x, b[t][u].y);
        mma<T>(sum[t], second, b[t][u].z, b[t][u].w);
      }
    }
  }
  let_next_start();
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[warp][t][i][lane] = sum[t][i];
  __syncthreads();

  // Element i of lane l is packed row g (+ 8 for i >= 2) of token 2q (+ 1 for odd i). A warp finishes one tile of tokens.
  for (int t = warp; t < kTiles; t += kWarps) {
    float total[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      total[i] = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total[i] += partial[w][t][i][lane];
    }
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int64_t token = t * 8 + 2 * q + odd;
      if (token >= p.m) continue;
      const EpilogueParams& e = p.end;
      if (p.gated) {
        const int64_t column = packed0 / 2 + g;
        if (column >= e.columns) continue;
        const float gate = total[odd] + (e.bias ? e.bias[column] : 0.0f);
        const float up = total[2 + odd] + (e.bias ? e.bias[e.columns + column] : 0.0f);
        e.out.set(token, column, __fdividef(gate, 1.0f + __expf(-gate)) * up);
        continue;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t column = packed0 + h * 8 + g;
        if (column >= e.columns) continue;
        float v = total[2 * h + odd] + (e.bias ? e.bias[column] : 0.0f);
        if (p.gelu) v = gelu(v);
        if (e.scale) v *= e.scale[column];
        if (e.residual.data) v += e.residual.get(e.residual_row(token), column);
        e.out.set(e.out_row(token), column, v);
      }
    }
  }
}

}  // namespace

void skinny_linear(Stream& stream, DType dtype, const GemmParams& p) {
  const Grid grid{static_cast<unsigned>(p.packed_rows / 16)};
  dispatch_half(dtype, "linear", [&](auto zero) {
    using T = decltype(zero);
    auto run = [&](auto kernel) { launch_fast(stream, "skinny_linear", grid, kThreads, 0, kernel, p); };
    if (p.m <= 8)
      run(skinny_kernel<T, 1>);
    else if (p.m <= 16)
      run(skinny_kernel<T, 2>);
    else
      run(skinny_kernel<T, 4>);
  });
}

}  // namespace tessera::cuda
