#pragma once

// How a product of narrow_linear ends where a block has all of K: sums go from registers to their places. (Else: narrow_sent.cuh.)

#include "backends/cuda/cluster.cuh"
#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/narrow_shape.h"

namespace tessera::cuda {

struct NarrowParams {
  CUtensorMap x, weight;
  CUtensorMap beside;       ///< where `ends_ahead`: the residual, if there is one, or the angles, in boxes of 8 columns
  bool ends_ahead = false;  ///< what sums meet at their end comes through shared memory (SentSums)
  int first_run;            ///< 0: the ends are rehearsed (kRehearsal)
  GemmParams g;
  RotaryParams rotary;
  NarrowShape shape;
};

/// Two warpgroups: accumulator tile t of group w holds rows 128 t + 64 w .. + 63 of the slab.
inline constexpr int kNarrowConsumers = 256;

/// Parts of a token's sum of squares that one block leaves: a token's columns go to as many groups of its threads.
constexpr int parts_of_block(int columns) { return kNarrowConsumers / (4 * columns); }

#ifdef TESSERA_WGMMA_HERE

/// What the sums of each token are multiplied with: 1 / root of its mean square where x is prepared, else 1. A thread asks for
/// parts of the squares ahead of the product and adds them up behind it.
template <int kN>
class TokenFactors {
  static constexpr int kTokens = kN / 8, kLanes = 32 / kTokens;  ///< of a warp, and that share a token
  static constexpr int kAhead = 7;  ///< pieces of four parts that a thread holds: what 112 blocks leave

 public:
  __device__ __forceinline__ explicit TokenFactors(const GemmParams& g)
      : g_(g), token_(static_cast<int>(threadIdx.x) / 32 * kTokens + static_cast<int>(threadIdx.x) % kTokens) {}

  __device__ __forceinline__ void load() {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) pieces_[i] = piece(i);
  }
  /// To shared memory; all consumers then meet before they read them there.
  __device__ __forceinline__ void leave(uint32_t to) const {
    float factor = 1.0f;
    if (g_.ahead.squares) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        float4 v = pieces_[i];
        // Not to be added up ahead of the product, which would wait.
        asm volatile("" : "+f"(v.x), "+f"(v.y), "+f"(v.z), "+f"(v.w));
        sum += (v.x + v.y) + (v.z + v.w);
      }
      for (int i = kAhead; i * kLanes * 4 < g_.ahead.parts; ++i) {
        const float4 more = piece(i);
        sum += (more.x + more.y) + (more.z + more.w);
      }
#pragma unroll
      for (int mask = kTokens; mask < 32; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      factor = rsqrtf(sum / static_cast<float>(g_.ahead.columns) + g_.ahead.eps);
    }
    if (threadIdx.x % 32 < kTokens) store_shared_float(to + static_cast<uint32_t>(token_) * 4, factor);
  }

 private:
  __device__ __forceinline__ float4 piece(int i) const {
    const int m = static_cast<int>(g_.m), four = i * kLanes + static_cast<int>(threadIdx.x) % 32 / kTokens;
    float4 v = make_float4(0, 0, 0, 0);
    if (token_ < m && four * 4 < g_.ahead.parts)
      v = __ldcg(reinterpret_cast<const float4*>(g_.ahead.squares) + four * m + token_);
    return v;
  }

  const GemmParams& g_;
  int token_;
  float4 pieces_[kAhead];
};

/// The first of the slab's rows that a thread's d[t][4 j + 2 h (+ 1)] belong to; token 8 j + 2 (lane % 4) (+ 1).
__device__ __forceinline__ int row_of_sums(int t, int h) {
  return t * 128 + static_cast<int>(threadIdx.x) / 32 * 16 + 8 * h + static_cast<int>(threadIdx.x) % 32 / 4;
}

/// One row's sums of all tokens to column `column` of the result. `kFloat`: f32 residual and result, no GELU.
template <int kN, bool kFloat>
__device__ __forceinline__ void finish_column(const NarrowParams& p, int64_t column, uint32_t factors,
                                              const float (&d)[kN / 2], int h) {
  const EpilogueParams& e = p.g.end;
  const int q = static_cast<int>(threadIdx.x) % 4, m = static_cast<int>(p.g.m);
  const float bias = e.bias ? __ldg(e.bias + column) : 0.0f, scale = e.scale ? __ldg(e.scale + column) : 1.0f;
  float residual[kN / 4] = {};
  if (e.residual.data) {
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      const int token = i / 2 * 8 + 2 * q + i % 2;
      if (token >= m) continue;
      residual[i] = kFloat ? static_cast<const float*>(e.residual.data)[token * e.residual.stride + column]
                           : e.residual.get(token, column);
    }
  }
#pragma unroll
  for (int i = 0; i < kN / 4; ++i) {
    const int token = i / 2 * 8 + 2 * q + i % 2;
    float v = fmaf(d[i / 2 * 4 + 2 * h + i % 2], load_shared_float(factors + static_cast<uint32_t>(token) * 4), bias);
    if (!kFloat && p.g.gelu) v = fast_gelu(v);
    v = fmaf(v, scale, residual[i]);
    if (token >= m) continue;
    if constexpr (kFloat)
      static_cast<float*>(e.out.data)[token * e.out.stride + column] = v;
    else
      e.out.set(token, column, v);
  }
}

/// The uncommon ends are a function of their own, or their code would be most of every kernel.
template <int kN>
__device__ __noinline__ void finish_column_general(const NarrowParams& p, int64_t column, uint32_t factors,
                                                   const float* sums, int h) {
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] = sums[i];
  finish_column<kN, false>(p, column, factors, d, h);
}

/// Gates and ups that meet in a thread. Their products go through shared memory at `staged`, so that rows of the result are
/// written in pieces of 16 bytes.
template <class T, int kN, int kTiles>
__device__ __forceinline__ void finish_gated(const NarrowParams& p, int slab, uint32_t staged, uint32_t factors,
                                             const float (&d)[kTiles][kN / 2], bool real) {
  const EpilogueParams& e = p.g.end;
  const int q = static_cast<int>(threadIdx.x) % 4, m = static_cast<int>(p.g.m);
  const int columns = p.shape.rows / 2, row_bytes = staged_row_bytes(p.shape.rows);
  const int64_t first = static_cast<int64_t>(slab) * columns;
  named_barrier_sync(1, kNarrowConsumers);  // the slab before has been written
  float factor[kN / 4];
#pragma unroll
  for (int i = 0; i < kN / 4; ++i)
    factor[i] = load_shared_float(factors + static_cast<uint32_t>(i / 2 * 8 + 2 * q + i % 2) * 4);
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const int row = row_of_sums(t, 0), within = row / 16 * 8 + row % 8;
    if (row >= p.shape.rows) continue;
    const int64_t column = first + within;
    const bool biased = e.bias && column < e.columns;
    const float gate = biased ? __ldg(e.bias + column) : 0.0f, up = biased ? __ldg(e.bias + e.columns + column) : 0.0f;
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      const int token = i / 2 * 8 + 2 * q + i % 2;
      const float f = factor[i];
      const T v =
          static_cast<T>(fast_silu(fmaf(d[t][i / 2 * 4 + i % 2], f, gate)) * fmaf(d[t][i / 2 * 4 + 2 + i % 2], f, up));
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(staged + static_cast<uint32_t>(token * row_bytes + within * 2)),
                   "h"(reinterpret_cast<const uint16_t&>(v))
                   : "memory");
    }
  }
  named_barrier_sync(1, kNarrowConsumers);
  T* const out = static_cast<T*>(e.out.data) + first;
  const int pieces = columns / 8, left = static_cast<int>(min(static_cast<int64_t>(columns), e.columns - first));
  const bool whole = e.out.stride % 8 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  for (int i = static_cast<int>(threadIdx.x); i < m * pieces; i += kNarrowConsumers) {
    const int token = i / pieces, column = i % pieces * 8;
    const uint4 v = load_shared(staged + static_cast<uint32_t>(token * row_bytes + column * 2));
    T* const to = out + token * e.out.stride + column;
    if (!real) continue;
    if (whole && column + 8 <= left) {
      *reinterpret_cast<uint4*>(to) = v;
      continue;
    }
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    for (int c = 0; c < 8 && column + c < left; ++c)
      reinterpret_cast<uint16_t*>(to)[c] = static_cast<uint16_t>(words[c / 2] >> (c % 2 * 16));
  }
}

/// Sums of a block that has all of K. 8 lanes write 8 neighbours of a row of the result.
template <class T, int kN, int kTiles>
__device__ __forceinline__ void finish_own(const NarrowParams& p, int slab, uint32_t factors,
                                           const float (&d)[kTiles][kN / 2]) {
  const EpilogueParams& e = p.g.end;
  const bool floats = e.out.dtype == DType::kF32 && (!e.residual.data || e.residual.dtype == DType::kF32) && !p.g.gelu;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row_of_sums(t, h);
      const int64_t column = static_cast<int64_t>(slab) * p.shape.rows + row;
      if (row >= p.shape.rows || column >= e.columns) continue;
      if (floats) {
        finish_column<kN, true>(p, column, factors, d[t], h);
      } else {
        float apart[kN / 2];
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) apart[i] = d[t][i];
        finish_column_general<kN>(p, column, factors, apart, h);
      }
    }
  }
}

#endif

}  // namespace tessera::cuda
