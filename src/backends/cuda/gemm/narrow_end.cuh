#pragma once

// How a product of narrow_linear ends: sums from registers straight to their places where a block has all of K, else
// through shared memory, where a cluster's blocks send each other the columns that each of them finishes.

#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/narrow_shape.h"

namespace tessera::cuda {

struct NarrowParams {
  CUtensorMap x, weight;
  CUtensorMap residual;         ///< in boxes of 8 columns, where `residual_ahead`
  bool residual_ahead = false;  ///< it comes through shared memory while the product is made
  GemmParams g;
  RotaryParams rotary;
  NarrowShape shape;
};

/// Two warpgroups: accumulator tile t of group w holds rows 128 t + 64 w .. + 63 of the slab.
inline constexpr int kNarrowConsumers = 256;

/// Parts of a token's sum of squares that one block leaves: a token's columns go to as many groups of its threads.
constexpr int parts_of_block(int columns) { return kNarrowConsumers / (4 * columns); }

#ifdef TESSERA_WGMMA_HERE

/// What the sums of each token are multiplied with, to shared memory: 1 / root of its mean square where x is prepared, else 1.
template <int kN>
__device__ __forceinline__ void prepare_factors(const GemmParams& g, uint32_t to) {
  constexpr int kTokens = kN / 8, kLanes = 32 / kTokens;  // of a warp, and that share a token
  const int lane = static_cast<int>(threadIdx.x) % 32, token = static_cast<int>(threadIdx.x) / 32 * kTokens + lane % kTokens;
  const int m = static_cast<int>(g.m);
  float factor = 1.0f;
  if (g.ahead.squares) {
    constexpr int kAtOnce = 8;
    const int fours = (g.ahead.parts + 3) / 4;
    const auto* squares = reinterpret_cast<const float4*>(g.ahead.squares);
    float sum = 0;
    for (int first = lane / kTokens; first < fours; first += kAtOnce * kLanes) {
      float4 v[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int four = first + i * kLanes;
        v[i] = four < fours && token < m ? __ldcg(squares + four * m + token) : make_float4(0, 0, 0, 0);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int left = g.ahead.parts - (first + i * kLanes) * 4;
        sum += v[i].x + (left > 1 ? v[i].y : 0.0f) + (left > 2 ? v[i].z : 0.0f) + (left > 3 ? v[i].w : 0.0f);
      }
    }
#pragma unroll
    for (int mask = kTokens; mask < 32; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    factor = rsqrtf(sum / static_cast<float>(g.ahead.columns) + g.ahead.eps);
  }
  if (lane < kTokens) asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + static_cast<uint32_t>(token) * 4), "f"(factor) : "memory");
}

template <int kN, int kTiles>
__device__ __forceinline__ void scale_sums(uint32_t factors, float (&d)[kTiles][kN / 2]) {
#pragma unroll
  for (int i = 0; i < kN / 4; ++i) {
    const float factor = load_shared_float(factors + static_cast<uint32_t>(i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2) * 4);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      d[t][i / 2 * 4 + i % 2] *= factor;
      d[t][i / 2 * 4 + 2 + i % 2] *= factor;
    }
  }
}

/// Order execution, not memory: what blocks send each other, barriers count. (A release waits for all of the
/// multiprocessor's traffic.)
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

/// The first of the slab's rows that a thread's d[t][4 j + 2 h (+ 1)] belong to; token 8 j + 2 (lane % 4) (+ 1).
__device__ __forceinline__ int row_of_sums(int t, int h) {
  return t * 128 + static_cast<int>(threadIdx.x) / 32 * 16 + 8 * h + static_cast<int>(threadIdx.x) % 32 / 4;
}

/// One row's sums of all tokens to column `column` of the result. `kFloat`: f32 residual and result, no GELU.
template <int kN, bool kFloat>
__device__ __forceinline__ void finish_column(const NarrowParams& p, int64_t column, const float (&d)[kN / 2], int h) {
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
    float v = d[i / 2 * 4 + 2 * h + i % 2] + bias;
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
__device__ __noinline__ void finish_column_general(const NarrowParams& p, int64_t column, const float* sums, int h) {
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] = sums[i];
  finish_column<kN, false>(p, column, d, h);
}

/// Gates and ups that meet in a thread. Their products go through shared memory at `staged`, so that rows of the result are
/// written in pieces of 16 bytes.
template <class T, int kN, int kTiles>
__device__ __forceinline__ void finish_gated(const NarrowParams& p, int slab, uint32_t staged,
                                             uint32_t factors, const float (&d)[kTiles][kN / 2], bool real) {
  const EpilogueParams& e = p.g.end;
  const int q = static_cast<int>(threadIdx.x) % 4, m = static_cast<int>(p.g.m);
  const int columns = p.shape.rows / 2, row_bytes = staged_row_bytes(p.shape.rows);
  const int64_t first = static_cast<int64_t>(slab) * columns;
  named_barrier_sync(1, kNarrowConsumers);  // the slab before has been written, and the factors
  float factor[kN / 4];
#pragma unroll
  for (int i = 0; i < kN / 4; ++i) factor[i] = load_shared_float(factors + static_cast<uint32_t>(i / 2 * 8 + 2 * q + i % 2) * 4);
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
      const T v = static_cast<T>(fast_silu(fmaf(d[t][i / 2 * 4 + i % 2], f, gate)) * fmaf(d[t][i / 2 * 4 + 2 + i % 2], f, up));
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
__device__ __forceinline__ void finish_own(const NarrowParams& p, int slab, const float (&d)[kTiles][kN / 2]) {
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
        finish_column<kN, true>(p, column, d[t], h);
      } else {
        float apart[kN / 2];
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) apart[i] = d[t][i];
        finish_column_general<kN>(p, column, apart, h);
      }
    }
  }
}

/// Sums that meet in shared memory. A slab's rows are dealt out in groups of 8 (of 8 and their 8 partners where halves of a
/// head pair up): group u to block u % cluster. A block keeps what it has ready as [receiver][its groups][token][8 rows] and
/// sends each receiver but itself its part in one piece, into [sender][...].
template <class T, int kN>
class SentSums {
 public:
  /// Where things lie in shared memory: own sums and, in `room`, those of the others; the residual, as the sums; the factors.
  struct Places {
    uint32_t sums, room, residual, factors;
  };

  __device__ __forceinline__ SentSums(const NarrowParams& p, int slab, int rank, const Places& at)
      : p_(p),
        slab_(slab),
        rank_(rank),
        at_(at),
        together_(p.rotary.half ? 2 : 1),
        units_(p.shape.rows / 8 / together_),
        places_((units_ + p.shape.cluster - 1) / p.shape.cluster * together_) {}

  /// One thread: starts the residual of the sums that this block finishes on its way.
  __device__ __forceinline__ void bring_residual(uint32_t barrier) const {
    barrier_expect(barrier, static_cast<uint32_t>(places_ * kN * 32));
    for (int place = 0; place < places_; ++place)
      copy_box(at_.residual + static_cast<uint32_t>(place * kN * 32), &p_.residual,
               slab_ * p_.shape.rows + (place * p_.shape.cluster + rank_) * 8, 0, barrier);
  }

  template <int kTiles>
  __device__ __forceinline__ void keep(const float (&d)[kTiles][kN / 2]) const {
    const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = row_of_sums(t, h), group = row / 8, unit = group % units_;
        if (row >= p_.shape.rows) continue;
        const int place = unit % p_.shape.cluster * places_ + unit / p_.shape.cluster * together_ + group / units_;
        const uint32_t to = at_.sums + static_cast<uint32_t>((place * kN + 2 * q) * 8 + row % 8) * 4;
#pragma unroll
        for (int i = 0; i < kN / 4; ++i)
          asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + (i / 2 * 8 + i % 2) * 32),
                       "f"(d[t][i / 2 * 4 + 2 * h + i % 2])
                       : "memory");
      }
  }

  /// One thread: the part of `receiver`, whose barrier counts its bytes. Requires: all have kept theirs, and the receiver's room is free.
  __device__ __forceinline__ void send(int receiver, uint32_t barrier) const {
    const auto bytes = static_cast<uint32_t>(places_ * kN * 32);
    uint32_t to, counts;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(to)
                 : "r"(at_.room + static_cast<uint32_t>(rank_) * bytes), "r"(receiver));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counts) : "r"(barrier), "r"(receiver));
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
        "r"(at_.sums + static_cast<uint32_t>(receiver) * bytes), "r"(bytes), "r"(counts)
        : "memory");
  }

  /// Requires: what all blocks of the cluster sent is there, and the residual, or it is a rehearsal.
  __device__ __forceinline__ void finish(bool real) const {
    const int items = places_ / together_ * kN * 4;
    const float factor = load_shared_float(at_.factors + threadIdx.x / 4 % kN * 4);  // a thread's items are of one token
    float squares = 0;
    for (int index = static_cast<int>(threadIdx.x); index < items; index += kNarrowConsumers) {
      const Item item = at(index);
      if (!item.inside) continue;
      if (p_.rotary.half)
        finish_rotated(item, factor, real);
      else
        squares += finish_plain(item, factor, real);
    }
    if (p_.g.behind.weight) leave_squares(squares, real);
  }

 private:
  /// Item: two neighbours of one token, of place item / (4 kN).
  struct Item {
    int place, token, within;
    int64_t column;  ///< of the result (of a rotated slab: of its pairs)
    bool inside;
  };
  __device__ __forceinline__ Item at(int item) const {
    Item at{.place = item / (4 * kN), .token = item / 4 % kN, .within = item % 4 * 2};
    const int unit = at.place * p_.shape.cluster + rank_;
    at.column = static_cast<int64_t>(slab_) * (p_.shape.rows / together_) + unit * 8 + at.within;
    at.inside = unit < units_ && at.token < p_.g.m && at.column * together_ < p_.g.end.columns;
    return at;
  }
  __device__ __forceinline__ static float2 shared_pair(uint32_t sums, int place, const Item& i) {
    const uint32_t from = sums + static_cast<uint32_t>((place * kN + i.token) * 8 + i.within) * 4;
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from) : "memory");
    return v;
  }
  __device__ __forceinline__ float2 sum(int place, const Item& i) const {
    float2 sum = make_float2(0, 0);
    for (int sender = 0; sender < p_.shape.cluster; ++sender) {
      const float2 v = shared_pair(sender == rank_ ? at_.sums : at_.room, sender * places_ + place, i);
      sum = make_float2(sum.x + v.x, sum.y + v.y);
    }
    return sum;
  }

  /// Four lanes share a token.
  __device__ __forceinline__ void leave_squares(float squares, bool real) const {
    squares += __shfl_xor_sync(0xffffffffu, squares, 1);
    squares += __shfl_xor_sync(0xffffffffu, squares, 2);
    const int token = static_cast<int>(threadIdx.x) / 4 % kN, m = static_cast<int>(p_.g.m);
    const int part = static_cast<int>(blockIdx.x) * parts_of_block(kN) + static_cast<int>(threadIdx.x) / (4 * kN);
    if (real && threadIdx.x % 4 == 0 && token < m) p_.g.behind.squares[(part / 4 * m + token) * 4 + part % 4] = squares;
  }

  /// Returns the squares of what it wrote, where a norm is prepared.
  __device__ __forceinline__ float finish_plain(const Item& i, float factor, bool real) const {
    const EpilogueParams& e = p_.g.end;
    float2 residual = make_float2(0, 0);
    if (p_.residual_ahead)
      residual = shared_pair(at_.residual, i.place, i);
    else if (e.residual.data && real)
      residual = load_pair(e.residual, i.token, i.column, e.columns);
    const float2 bias = e.bias ? constant_pair(e.bias, i.column, e.columns) : make_float2(0, 0);
    const float2 scale = e.scale ? constant_pair(e.scale, i.column, e.columns) : make_float2(1, 1);
    float2 v = sum(i.place, i);
    v = make_float2(fmaf(v.x, factor, bias.x), fmaf(v.y, factor, bias.y));
    if (p_.g.gelu) v = make_float2(fast_gelu(v.x), fast_gelu(v.y));
    v = make_float2(fmaf(v.x, scale.x, residual.x), fmaf(v.y, scale.y, residual.y));
    if (real) store_pair(e.out, i.token, i.column, e.columns, v.x, v.y);
    const NormBehind& norm = p_.g.behind;
    if (!norm.weight) return 0;
    const float2 w = constant_pair(norm.weight, i.column, e.columns);
    if (real) store_pair({norm.rows, norm.stride, Half2<T>::kDType}, i.token, i.column, e.columns, v.x * w.x, v.y * w.y);
    return v.x * v.x + v.y * v.y;
  }

  /// Two pairs of one head: rotated to their places among the queries or in the cache; values go there as they are. Biases, angles
  /// and slots are older than the step's layers, so a rehearsal may read them.
  __device__ __forceinline__ void finish_rotated(const Item& i, float factor, bool real) const {
    const RotaryParams& r = p_.rotary;
    const EpilogueParams& e = p_.g.end;
    const int head = slab_, d = static_cast<int>(i.column) - head * r.half, row = head * 2 * r.half + d;
    const bool value = head >= r.heads + r.kv_heads;
    const int slot = head < r.heads ? 0 : r.slots[i.token];
    float2 bias[2] = {make_float2(0, 0), make_float2(0, 0)}, cosine = make_float2(1, 1), sine = make_float2(0, 0);
    if (e.bias)
      for (int h = 0; h < 2; ++h) bias[h] = make_float2(__ldg(e.bias + row + h * r.half), __ldg(e.bias + row + h * r.half + 1));
    if (!value) {
      const float* angles = r.cos_sin + i.token * r.cos_sin_stride + d;
      cosine = *reinterpret_cast<const float2*>(angles);
      sine = *reinterpret_cast<const float2*>(angles + r.half);
    }
    if (slot < 0) return;
    T* const to = head < r.heads ? static_cast<T*>(e.out.data) + i.token * e.out.stride + row : cache_place<T>(r, slot, head, value) + d;
    float2 first = sum(i.place * 2, i), second = sum(i.place * 2 + 1, i);
    first = make_float2(fmaf(first.x, factor, bias[0].x), fmaf(first.y, factor, bias[0].y));
    second = make_float2(fmaf(second.x, factor, bias[1].x), fmaf(second.y, factor, bias[1].y));
    if (!real) return;
    *reinterpret_cast<uint32_t*>(to) =
        pack2<T>(first.x * cosine.x - second.x * sine.x, first.y * cosine.y - second.y * sine.y);
    *reinterpret_cast<uint32_t*>(to + r.half) =
        pack2<T>(second.x * cosine.x + first.x * sine.x, second.y * cosine.y + first.y * sine.y);
  }

  const NarrowParams& p_;
  int slab_, rank_;
  Places at_;
  int together_, units_, places_;
};

#endif

}  // namespace tessera::cuda
