#pragma once

#include "backends/cuda/fast.cuh"
#include "ops/linear.h"

namespace tessera::cuda {

/// The pair of LinearArgs::out_sums for kSumColumns columns of a row, eight of which, as they are stored, are in each of 8
/// neighbouring lanes. All lanes of a warp call it.
template <class T>
__device__ __forceinline__ float2 column_sums(uint4 stored) {
  static_assert(kSumColumns == 8 * 8);
  float v[8];
  float2 sums = make_float2(0, 0);
  unpack8<T>(stored, v);
#pragma unroll
  for (float each : v) sums = make_float2(sums.x + each, fmaf(each, each, sums.y));
#pragma unroll
  for (int mask = 4; mask > 0; mask /= 2) {
    sums.x += __shfl_xor_sync(0xffffffffu, sums.x, mask);
    sums.y += __shfl_xor_sync(0xffffffffu, sums.y, mask);
  }
  return sums;
}

}  // namespace tessera::cuda
