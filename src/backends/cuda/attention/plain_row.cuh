#pragma once

// One row's attention by one warp, from memory: what a fast kernel leaves over because its arithmetic does not reach that far. Slow,
// and small, since hardly any row comes here.

#include "backends/cuda/fast.cuh"

namespace tessera::cuda {

/// out = softmax(scale * q K^T) V of one query over `count` keys; `k` and `v` point at their first rows, `stride` elements apart. Weights are
/// rounded to T before they meet values, as tensor cores' are.
template <int kHeadDim, class T>
__device__ void plain_row(const T* q, const T* k, const T* v, int64_t stride, int count, float scale_log2, T* out) {
  static_assert(kHeadDim == 64, "a lane makes two dimensions");
  const int lane = static_cast<int>(threadIdx.x) % 32;
  auto score = [&](int key) {
    float sum = 0;
#pragma unroll 1
    for (int d = 0; d < kHeadDim; ++d) sum = fmaf(static_cast<float>(q[d]), static_cast<float>(k[key * stride + d]), sum);
    return sum;
  };
  float best = -INFINITY;
#pragma unroll 1
  for (int key = lane; key < count; key += 32) best = fmaxf(best, score(key));
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, mask));
  float total = 0, sums[2] = {0, 0};
#pragma unroll 1
  for (int first = 0; first < count; first += 32) {
    const float weight = first + lane < count ? fast_exp2((score(first + lane) - best) * scale_log2) : 0.0f;
    total += weight;
    const float rounded = static_cast<float>(static_cast<T>(weight));
#pragma unroll 1
    for (int i = 0; i < min(32, count - first); ++i) {
      const float w = __shfl_sync(0xffffffffu, rounded, i);
      const T* values = v + (first + i) * stride + 2 * lane;
      sums[0] = fmaf(w, static_cast<float>(values[0]), sums[0]);
      sums[1] = fmaf(w, static_cast<float>(values[1]), sums[1]);
    }
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) total += __shfl_xor_sync(0xffffffffu, total, mask);
  for (int i = 0; i < 2; ++i) out[2 * lane + i] = static_cast<T>(sums[i] / total);
}

}  // namespace tessera::cuda
