#pragma once

// What a warpgroup of flash attention does between its two products: scores of a piece of keys to weights. A thread has two rows'
// scores in the order of wgmma's sums: element e belongs to row e % 4 / 2.

#include "backends/cuda/wgmma.cuh"

namespace tessera::cuda {

#ifdef TESSERA_WGMMA_HERE

/// A thread's softmax state of its two rows.
struct FlashRows {
  float best[2] = {-INFINITY, -INFINITY};  ///< the maximum that weights are relative to
  float total[2] = {0, 0};                 ///< this lane's share of the sum of weights
};

/// Takes the scores' maximum into account; returns the factors by which earlier sums shrink. The reference maximum stays until
/// a row's maximum has grown by 2^8: most pieces then shrink nothing.
template <int kKeys>
__device__ __forceinline__ void follow_maximum(const float* scores, float scale_log2, FlashRows& rows, float (&shrink)[2]) {
  constexpr float kSlack = 8.0f;
  // Several chains a row: one alone would wait for its own latency.
  constexpr int kChains = 4;
  float m[2][kChains];
#pragma unroll
  for (int e = 0; e < kKeys / 4; ++e)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float s = scores[4 * (e / 2) + 2 * h + e % 2];
      m[h][e % kChains] = e < kChains ? s : fmaxf(m[h][e % kChains], s);
    }
  float best[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) best[h] = fmaxf(fmaxf(m[h][0], m[h][1]), fmaxf(m[h][2], m[h][3]));
#pragma unroll
  for (int mask = 1; mask <= 2; mask *= 2)
#pragma unroll
    for (int h = 0; h < 2; ++h) best[h] = fmaxf(best[h], __shfl_xor_sync(0xffffffffu, best[h], mask));
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float grown = (best[h] - rows.best[h]) * scale_log2;
    const bool moves = grown > kSlack;
    shrink[h] = moves ? fast_exp2(-grown) : 1.0f;
    rows.best[h] = moves ? best[h] : rows.best[h];
  }
}

/// Sums of a piece's weights, of this lane's keys, in turns for each row: one sum would wait for itself.
struct FlashAdded {
  float of[2][2] = {};
};

/// 16 keys' scores of the thread's row h to weights, in place.
__device__ __forceinline__ void weigh_row(float* scores, int h, float scale_log2, const FlashRows& rows, FlashAdded& added) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    float& s = scores[e / 2 * 4 + 2 * h + e % 2];
    s = fast_exp2(fmaf(s, scale_log2, -rows.best[h] * scale_log2));
    added.of[h][e % 2] += s;
  }
}
/// Of both rows.
__device__ __forceinline__ void weigh(float* scores, float scale_log2, const FlashRows& rows, FlashAdded& added) {
  weigh_row(scores, 0, scale_log2, rows, added);
  weigh_row(scores, 1, scale_log2, rows, added);
}

/// 16 keys' weights to 16 bits.
template <class T>
__device__ __forceinline__ void pack(const float* scores, uint32_t (&weights)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) weights[r] = pack2<T>(scores[2 * r], scores[2 * r + 1]);
}

__device__ __forceinline__ void add_totals(const FlashAdded& added, const float (&shrink)[2], FlashRows& rows) {
#pragma unroll
  for (int h = 0; h < 2; ++h) rows.total[h] = fmaf(rows.total[h], shrink[h], added.of[h][0] + added.of[h][1]);
}

/// Never traps. A branch on the rows' sums of weights keeps the assembler from moving sums and exponentials behind the next
/// wait, where nothing runs beside them.
__device__ __forceinline__ void weighed(float first, float second) {
  if (first < 0.0f || second < 0.0f) __trap();
}

#endif

}  // namespace tessera::cuda
