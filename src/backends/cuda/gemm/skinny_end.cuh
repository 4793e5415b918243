#pragma once

// How skinny_linear shares out a weight's rows, and what becomes of their sums.

#include "backends/cuda/fast.cuh"
#include "backends/cuda/gemm/gemm.h"

namespace tessera::cuda::skinny {

struct Params {
  SkinnyParams s;
  int64_t x_row;     ///< elements between x's rows in shared memory; 0: x stays where it is
  int warps_a_row;   ///< that bring a row together
  float inverse_k;
  int batch;         ///< tiles whose sums meet at one barrier
  bool two_buffers;  ///< for them, in turns; else there is one batch, or a second barrier
  int quads;         ///< of lanes that hold tokens
};

/// How a tile ends. A kernel of its own for each usual end: what a warp runs once it also fetches once, so that a general
/// end costs more than the sums.
enum class Ends {
  kGeneral,
  kRotated,    ///< q | k | v: rotation and cache
  kGatedHalf,  ///< silu(gate) * up in the weight's type
  kFloat,      ///< f32, at most with bias and an f32 residual
};

/// Which rows of the weight a block's tiles hold. A tile has up to 16 columns of the result, or 8 that take two rows each:
/// slots 0-7 hold gates (or first halves of a head), slots 8-15 their ups (or second halves).
template <Ends kEnds, int kRows>
struct Slice {
  int begin, end;  ///< columns of the result (pairs of them when rotated)
  bool gated;
  int half;        ///< of a rotated head, else 0
  int tiles, width;  ///< columns of a tile: all alike, since a stage of few rows keeps few bytes in flight

  __device__ bool paired() const { return kEnds == Ends::kGeneral ? gated : kEnds != Ends::kFloat; }
  __device__ Slice(int begin, int end, bool gated, int half) : begin(begin), end(end), gated(gated), half(half) {
    const int most = paired() ? 8 : kRows, columns = end - begin;
    tiles = (columns + most - 1) / most;
    width = (columns + tiles - 1) / tiles;
  }
  __device__ int within(int slot) const { return paired() ? slot % 8 : slot; }
  __device__ int column(int tile, int slot) const { return begin + tile * width + within(slot); }
  /// The packed row, or -1 past the end.
  __device__ int row(int tile, int slot) const {
    const int c = column(tile, slot), second = slot / 8;
    if (c >= end || within(slot) >= width) return -1;
    if (kEnds == Ends::kRotated) return c / half * 2 * half + c % half + second * half;
    return paired() ? c / 8 * 16 + c % 8 + second * 8 : c;
  }
};

/// What the end of a tile needs beside the sums. Element h, odd: slot g + 8 h, token 2 q + odd.
struct End {
  int row[2];         ///< packed rows, -1 past the end
  float bias[2];
  int head, d;        ///< of a rotated pair
  int slot[2];        ///< of its tokens
  float other[2][2];  ///< residual; of a rotated pair [0] are cosines, [1] sines
};

/// The part that no kernel writes: may be loaded before the kernel ahead has ended.
template <Ends kEnds, int kRows>
__device__ __forceinline__ void prepare_end(const Params& p, const Slice<kEnds, kRows>& slice, int tile, int g,
                                            End& end) {
  const EpilogueParams& e = p.s.g.end;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    end.row[h] = slice.row(tile, g + 8 * h);
    // A gated weight's biases are [gate; up], others' lie in the order of the rows.
    const int64_t at = kEnds != Ends::kRotated && slice.paired() ? slice.column(tile, g) + h * e.columns : end.row[h];
    end.bias[h] = e.bias && end.row[h] >= 0 ? __ldg(e.bias + at) : 0.0f;
  }
  if (kEnds != Ends::kRotated) return;
  end.head = slice.column(tile, g) / slice.half;
  end.d = slice.column(tile, g) % slice.half;
}

template <Ends kEnds, int kRows>
__device__ __forceinline__ void load_end(const Params& p, const Slice<kEnds, kRows>& slice, int t, int q, End& end) {
  const EpilogueParams& e = p.s.g.end;
  const RotaryParams& r = p.s.rotary;
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int token = t * 8 + 2 * q + odd;
    end.slot[odd] = kEnds == Ends::kRotated && token < p.s.g.m ? r.slots[token] : -1;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int token = t * 8 + 2 * q + odd;
      end.other[h][odd] = 0;
      if (end.row[h] < 0 || token >= p.s.g.m) continue;
      if constexpr (kEnds == Ends::kRotated) {
        end.other[h][odd] = r.cos_sin[token * r.cos_sin_stride + end.d + h * slice.half];
      } else if (e.residual.data) {
        if constexpr (kEnds == Ends::kFloat)
          end.other[h][odd] = static_cast<const float*>(e.residual.data)[token * e.residual.stride + end.row[h]];
        else
          end.other[h][odd] = e.residual.get(token, end.row[h]);
      }
    }
}

/// A pair of one head: rotated to its place among the queries or in the cache; values go there as they are.
template <class T, int kRows>
__device__ __forceinline__ void finish_rotated(const Params& p, const Slice<Ends::kRotated, kRows>& slice,
                                               const End& end, int odd, int token, float first, float second) {
  const RotaryParams& r = p.s.rotary;
  const float cosine = end.other[0][odd], sine = end.other[1][odd];
  const float a = first * cosine - second * sine, b = second * cosine + first * sine;
  if (end.head < r.heads) {
    T* to = static_cast<T*>(p.s.g.end.out.data) + token * p.s.g.end.out.stride + end.row[0];
    to[0] = static_cast<T>(a);
    to[slice.half] = static_cast<T>(b);
    return;
  }
  const int slot = end.slot[odd];
  if (slot < 0) return;
  const bool value = end.head >= r.heads + r.kv_heads;
  T* to = cache_place<T>(r, slot, end.head, value) + end.d;
  to[0] = static_cast<T>(value ? first : a);
  to[slice.half] = static_cast<T>(value ? second : b);
}

template <class T, Ends kEnds, int kRows>
__device__ __forceinline__ void finish(const Params& p, const Slice<kEnds, kRows>& slice, int tile, int t, int g, int q,
                                       const End& end, const float (&total)[4]) {
  const EpilogueParams& e = p.s.g.end;
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int token = t * 8 + 2 * q + odd;
    if (token >= p.s.g.m) continue;
    const float first = total[odd] + end.bias[0], second = total[2 + odd] + end.bias[1];
    if constexpr (kEnds == Ends::kRotated) {
      if (end.row[0] >= 0) finish_rotated<T>(p, slice, end, odd, token, first, second);
    } else if constexpr (kEnds == Ends::kGatedHalf) {
      if (end.row[0] >= 0)
        static_cast<T*>(e.out.data)[token * e.out.stride + slice.column(tile, g)] = static_cast<T>(fast_silu(first) * second);
    } else if constexpr (kEnds == Ends::kFloat) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (end.row[h] >= 0)
          static_cast<float*>(e.out.data)[token * e.out.stride + end.row[h]] = (h ? second : first) + end.other[h][odd];
    } else if (slice.gated) {
      if (end.row[0] >= 0) e.out.set(token, slice.column(tile, g), fast_silu(first) * second);
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (end.row[h] < 0) continue;
        float v = h ? second : first;
        if (p.s.g.gelu) v = gelu(v);
        if (e.scale) v *= __ldg(e.scale + end.row[h]);
        e.out.set(token, end.row[h], v + end.other[h][odd]);
      }
    }
  }
}

}  // namespace tessera::cuda::skinny
