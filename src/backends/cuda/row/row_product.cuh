#pragma once

// A product of one row: the pieces that the kernels of a decoder layer of one sequence share.

#include "backends/cuda/fast.cuh"
#include "backends/cuda/wgmma.cuh"

namespace tessera::cuda::row {

// The weight's rows are the rows of mma.sync, x is all of its eight columns, of which one is read. The warps share K in slices of 64.
// The sum over k may run in any order, so a lane takes 8 neighbouring k of its row (16 bytes, one load) as its share of two steps:
// lane l, g = l / 4, q = l % 4 holds k 8 q .. 8 q + 7 of either half of the slice, of rows g, g + 8, ... ("groups" of 8 rows).
constexpr int kSlice = 64;
constexpr int kHalf = kSlice / 2;

/// The warps' sums of a row, side by side: 8 lanes' vectors of 8 rows meet no bank twice.
constexpr int kSumStride = 20;

/// What a kernel ahead wrote: stays behind wait_for_previous().
__device__ __forceinline__ uint4 load_written(const void* from) {
  uint4 v;
  asm volatile("ld.global.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  return v;
}
__device__ __forceinline__ float load_written_float(const float* from) {
  float v;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(__cvta_generic_to_global(from)) : "memory");
  return v;
}

/// Two steps of a tile of 16 rows: 16 bytes of a row of its first half and of its second, and of x.
template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], const uint4& first, const uint4& second, const uint4& x) {
  const uint32_t a[4] = {first.x, second.x, first.y, second.y}, b[4] = {first.z, second.z, first.w, second.w};
  mma<T>(c, a, x.x, x.y);
  mma<T>(c, b, x.z, x.w);
}
/// The same of a single group: the halves of K are the halves of the tile, and two of its columns. The sum is c[0] + c[3].
template <class T>
__device__ __forceinline__ void multiply_group(float (&c)[4], const uint4& first, const uint4& second, const uint4 (&x)[2]) {
  const bool odd = threadIdx.x / 4 % 2 != 0;
  multiply<T>(c, first, second,
              make_uint4(odd ? x[1].x : x[0].x, odd ? x[1].y : x[0].y, odd ? x[1].z : x[0].z, odd ? x[1].w : x[0].w));
}

/// sum[i] = rows of group i times x, for lanes with q == 0. `weight(group, half)` brings 16 bytes of the lane's row.
template <class T, int kGroups, class Weight>
__device__ __forceinline__ void product(float (&sum)[kGroups], const uint4 (&x)[2], Weight weight) {
  constexpr int kTiles = kGroups / 2;
  float c[kTiles + 1][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int t = 0; t < kTiles; ++t) multiply<T>(c[t], weight(2 * t, half), weight(2 * t + 1, half), x[half]);
  if constexpr (kGroups % 2 == 1) {
    multiply_group<T>(c[kTiles], weight(kGroups - 1, 0), weight(kGroups - 1, 1), x);
    sum[kGroups - 1] = c[kTiles][0] + c[kTiles][3];
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    sum[2 * t] = c[t][0];
    sum[2 * t + 1] = c[t][2];
  }
}

/// Leaves a warp's sums for add_warps.
template <int kGroups>
__device__ __forceinline__ void leave_sums(float* sums, const float (&sum)[kGroups], int warp, int lane) {
  if (lane % 4 != 0) return;
#pragma unroll
  for (int i = 0; i < kGroups; ++i) sums[(8 * i + lane / 4) * kSumStride + warp] = sum[i];
}

template <int kWarps>
__device__ __forceinline__ float add_warps(const float* sums, int slot) {
  static_assert(kWarps <= kSumStride && kWarps % 2 == 0);
  const float* from = sums + slot * kSumStride;
  float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int w = 0; w + 4 <= kWarps; w += 4) {
    const float4 v = *reinterpret_cast<const float4*>(from + w);
    total = make_float4(total.x + v.x, total.y + v.y, total.z + v.z, total.w + v.w);
  }
  if constexpr (kWarps % 4 != 0) {
    const float2 v = *reinterpret_cast<const float2*>(from + kWarps / 4 * 4);
    total.x += v.x;
    total.y += v.y;
  }
  return (total.x + total.y) + (total.z + total.w);
}

/// bf16 is as exact before the division by a norm as behind it: the sums are divided at their end, and nobody waits for the squares
/// before the product. f16 has not the range.
template <class T>
inline constexpr bool kDividesLate = std::is_same_v<T, __nv_bfloat16>;

/// A warp's slice of f32 x, and what its RMS norm makes of it.
struct NormedSlice {
  float x[2][8];

  __device__ __forceinline__ void load(const float* from, int warp, int q) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        const uint4 v = load_written(from + warp * kSlice + half * kHalf + 8 * q + i);
        x[half][i] = __uint_as_float(v.x), x[half][i + 1] = __uint_as_float(v.y);
        x[half][i + 2] = __uint_as_float(v.z), x[half][i + 3] = __uint_as_float(v.w);
      }
  }
  /// The slice's sum of squares, for inverse_norm.
  __device__ __forceinline__ void leave_squares(float* to, int warp, int lane) const {
    float part[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 8; ++i) part[half] = fmaf(x[half][i], x[half][i], part[half]);
    float squares = part[0] + part[1];
    squares += __shfl_xor_sync(0xffffffffu, squares, 1);
    squares += __shfl_xor_sync(0xffffffffu, squares, 2);
    if (lane == 0) to[warp] = squares;
  }
  /// x times a factor and the norm's weights, f32 in shared memory.
  template <class T>
  __device__ __forceinline__ void pack(uint4 (&to)[2], float factor, uint32_t weights, int warp, int q) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        const uint4 w = load_shared(weights + (warp * kSlice + half * kHalf + 8 * q + i) * 4);
        v[i] = x[half][i] * factor * __uint_as_float(w.x), v[i + 1] = x[half][i + 1] * factor * __uint_as_float(w.y);
        v[i + 2] = x[half][i + 2] * factor * __uint_as_float(w.z), v[i + 3] = x[half][i + 3] * factor * __uint_as_float(w.w);
      }
      to[half] = pack8<T>(v);
    }
  }
};

/// 1 / root of the mean square from the squares of kWarps slices.
template <int kWarps>
__device__ __forceinline__ float inverse_norm(const float* squares, float eps) {
  return rsqrtf(add_warps<kWarps>(squares, 0) * (1.0f / (kWarps * kSlice)) + eps);
}

#ifdef TESSERA_WGMMA_HERE
/// Lets nanoseconds pass. Weights that a block brings as soon as it can hold up the few numbers that kernels wait for whose turn it is
/// meanwhile, and what the end of a kernel waits for; there is time before its own turn.
__device__ __forceinline__ void pause(int nanoseconds) {
  uint64_t begin, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  while (now - begin < static_cast<uint64_t>(nanoseconds));
}
/// Barriers count what arrives once; they are made anew in every launch.
__device__ __forceinline__ void wait_for(uint32_t barrier) { barrier_wait(barrier, 0); }
#endif

}  // namespace tessera::cuda::row
