#pragma once

// What greedy rows ask of their logits: the largest of the allowed ones, and for its logprob the sum of exponentials of all.

#include "backends/cuda/plain/portable.h"

namespace tessera::cuda {

/// Of a part of a row.
struct Choice {
  float top = -INFINITY;  ///< the largest allowed logit
  int id = INT32_MAX;     ///< of equals the lowest; as it is here: none
  float best = -INFINITY, sum = 0;  ///< of all: the largest, and the sum of exponentials relative to it
};
static_assert(sizeof(Choice) == 16);

/// Two parts of a row together.
__device__ __forceinline__ Choice join(const Choice& a, const Choice& b) {
  const bool second = b.top > a.top || (b.top == a.top && b.id < a.id);
  const float best = fmaxf(a.best, b.best), reference = best == -INFINITY ? 0.0f : best;
  return {.top = second ? b.top : a.top,
          .id = second ? b.id : a.id,
          .best = best,
          .sum = a.sum * __expf(a.best - reference) + b.sum * __expf(b.best - reference)};
}

/// The choice of lane `lane ^ mask`.
__device__ __forceinline__ Choice choice_across(const Choice& v, int mask) {
  return {.top = __shfl_xor_sync(0xffffffffu, v.top, mask),
          .id = __shfl_xor_sync(0xffffffffu, v.id, mask),
          .best = __shfl_xor_sync(0xffffffffu, v.best, mask),
          .sum = __shfl_xor_sync(0xffffffffu, v.sum, mask)};
}

__device__ __forceinline__ Choice join_warp(Choice v) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) v = join(v, choice_across(v, mask));
  return v;
}

}  // namespace tessera::cuda
