#pragma once

// How a product of narrow_linear ends where a cluster shares its K: through shared memory, where its blocks send each other the
// sums that each of them finishes.

#include "backends/cuda/gemm/narrow_end.cuh"

namespace tessera::cuda {

#ifdef TESSERA_WGMMA_HERE

/// Sums that meet in shared memory. A slab's rows are dealt out in groups of 8 (of 8 and their 8 partners where halves of a
/// head pair up): group u to block u % cluster. A block's sums go from registers into the receivers' [sender][group][8 rows][token]. What
/// they meet at the end lies there, too, as [group][token][8 rows]: it would come late from memory, behind the streams of this kernel and
/// the next.
template <class T, int kN>
class SentSums {
  static constexpr int kRowBytes = sent_row_bytes(kN), kGroupBytes = 8 * kRowBytes;
  static constexpr int kBesideBytes = kN * 32;  ///< of a group

 public:
  /// Where things lie in shared memory: all blocks' sums of the rows that this one ends; residuals or angles; biases and the next
  /// norm's weights, of each group 8; the tokens' factors.
  struct Places {
    uint32_t sums, beside, vectors, factors;
  };

  __device__ __forceinline__ SentSums(const NarrowParams& p, int slab, int rank, const Places& at)
      : p_(p),
        slab_(slab),
        rank_(rank),
        at_(at),
        together_(p.rotary.half ? 2 : 1),
        units_(p.shape.rows / 8 / together_),
        own_((units_ - rank + p.shape.cluster - 1) / p.shape.cluster),
        places_((units_ + p.shape.cluster - 1) / p.shape.cluster * together_) {}

  /// One thread: starts on its way what is older than the kernel ahead, and then, `late`, what is not.
  __device__ __forceinline__ void bring(uint32_t barrier, bool late) const {
    if (!p_.ends_ahead) {
      if (!late) barrier_arrive(barrier);
      return;
    }
    const EpilogueParams& e = p_.g.end;
    const bool residual = e.residual.data != nullptr, angles = rotates();
    const float* const vectors[2] = {e.bias, p_.g.behind.weight};
    if (!late) {
      int inside = 0;
      for (int place = 0; place < own_ * together_; ++place) inside += first_column(place) < e.columns;
      barrier_expect(barrier, static_cast<uint32_t>((residual || angles ? own_ * together_ * kBesideBytes : 0) +
                                                    inside * 32 * ((vectors[0] != nullptr) + (vectors[1] != nullptr))));
    }
    for (int place = 0; place < own_ * together_; ++place) {
      const int column = first_column(place);
      if (late ? residual : angles)
        copy_box(at_.beside + static_cast<uint32_t>(place * kBesideBytes), &p_.beside,
                 column - (angles ? slab_ * 2 * p_.rotary.half : 0), 0, barrier);
      for (int v = 0; v < 2; ++v)
        if (!late && vectors[v] && column < e.columns) copy_bytes(vector_at(v, place), vectors[v] + column, 32, barrier);
    }
  }

  /// Where the thread's token goes in the cache, of what a head of keys or values needs.
  __device__ __forceinline__ int slot() const {
    const RotaryParams& r = p_.rotary;
    return r.half && slab_ >= r.heads && token() < p_.g.m ? r.slots[token()] : 0;
  }

  /// Bytes that the other blocks send this one.
  __device__ __forceinline__ uint32_t expected() const {
    return static_cast<uint32_t>((p_.shape.cluster - 1) * own_ * together_ * 8 * kN * 4);
  }

  /// Where a lane's sums go, if they are of the slab: in another block, and what counts them there, or, if not 0, in this one.
  template <int kTiles>
  struct Routes {
    bool inside[kTiles][2];
    uint32_t here[kTiles][2], there[kTiles][2], counts[kTiles][2];
  };
  /// Found before the sums are there: divisions take long.
  template <int kTiles>
  __device__ __forceinline__ Routes<kTiles> routes(uint32_t barrier) const {
    Routes<kTiles> routes;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = row_of_sums(t, h), group = row / 8, unit = group % units_, receiver = unit % p_.shape.cluster;
        const int place = rank_ * places_ + unit / p_.shape.cluster * together_ + group / units_, lane = static_cast<int>(threadIdx.x) % 32;
        const uint32_t to = at_.sums + static_cast<uint32_t>(place * kGroupBytes + row % 8 * kRowBytes + (lane % 2 * 8 + lane % 4 / 2 * 4) * 4);
        routes.inside[t][h] = row < p_.shape.rows;
        routes.here[t][h] = receiver == rank_ ? to : 0;
        routes.there[t][h] = place_in_block(to, receiver);
        routes.counts[t][h] = place_in_block(barrier, receiver);
      }
    return routes;
  }
  /// Each group of rows to the block that ends it. A lane has two neighbouring tokens of a row; with its neighbour it makes four of them.
  /// Requires: the rooms are free.
  template <int kTiles>
  __device__ __forceinline__ void send(const Routes<kTiles>& routes, const float (&d)[kTiles][kN / 2]) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (!routes.inside[t][h]) continue;
#pragma unroll
        for (int j = 0; j < kN / 8; j += 2) {
          const int a = 4 * j + 2 * h, b = a + 4;
          const float4 v = four_tokens(d[t][a], d[t][a + 1], d[t][b], d[t][b + 1]);
          const uint32_t at = static_cast<uint32_t>(8 * j) * 4;
          if (routes.here[t][h])
            store_shared4(routes.here[t][h] + at, v);
          else
            store_in_block(routes.there[t][h] + at, v, routes.counts[t][h]);
        }
      }
  }

  /// Requires: what the cluster's blocks sent is there, and what was brought; or it is a rehearsal.
  __device__ __forceinline__ void finish(int slot, bool real) const {
    const float factor = load_shared_float(at_.factors + static_cast<uint32_t>(token()) * 4);
    float squares = 0;
    for (int own = static_cast<int>(threadIdx.x) / (4 * kN); own < own_; own += kGroupsAtOnce) {
      const int column = slab_ * p_.shape.rows + (own * p_.shape.cluster + rank_) * 8;
      if (column >= p_.g.end.columns || token() >= p_.g.m) continue;
      if (p_.rotary.half)
        finish_rotated(2 * own, column, slot, factor, real);
      else
        squares += finish_plain(own, column, factor, real);
    }
    if (p_.g.behind.weight) leave_squares(squares, real);
  }

 private:
  static constexpr int kGroupsAtOnce =
      kNarrowConsumers / (4 * kN);  ///< a thread takes two neighbours of one token in each

  __device__ __forceinline__ static int token() { return static_cast<int>(threadIdx.x) / 4 % kN; }
  __device__ __forceinline__ static int within() { return static_cast<int>(threadIdx.x) % 4 * 2; }
  __device__ __forceinline__ bool rotates() const {
    return p_.rotary.half && slab_ < p_.rotary.heads + p_.rotary.kv_heads;
  }
  /// Of the result, or of a head: first halves and second halves alternate by places.
  __device__ __forceinline__ int first_column(int place) const {
    return slab_ * p_.shape.rows + place % together_ * p_.rotary.half + (place / together_ * p_.shape.cluster + rank_) * 8;
  }
  __device__ __forceinline__ uint32_t vector_at(int which, int place) const {
    return at_.vectors + static_cast<uint32_t>((which * places_ + place) * 32);
  }

  __device__ __forceinline__ static float2 shared_pair(uint32_t at) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
    return v;
  }
  /// Of two lanes' pairs a and b: the even lane gets both of a, the odd one both of b.
  __device__ __forceinline__ static float4 four_tokens(float a0, float a1, float b0, float b1) {
    const bool odd = threadIdx.x % 2 != 0;
    const float x = __shfl_xor_sync(0xffffffffu, odd ? a0 : b0, 1), y = __shfl_xor_sync(0xffffffffu, odd ? a1 : b1, 1);
    return odd ? make_float4(x, y, b0, b1) : make_float4(a0, a1, x, y);
  }
  /// The thread's pair of what lies beside a group.
  __device__ __forceinline__ float2 pair_beside(int place) const {
    return shared_pair(at_.beside + static_cast<uint32_t>((place * kN + token()) * 8 + within()) * 4);
  }
  __device__ __forceinline__ float2 sum(int place) const {
    float2 sum = make_float2(0, 0);
    uint32_t from = at_.sums + static_cast<uint32_t>(place * kGroupBytes + within() * kRowBytes + token() * 4);
#pragma unroll 4
    for (int sender = 0; sender < p_.shape.cluster; ++sender, from += static_cast<uint32_t>(places_ * kGroupBytes)) {
      sum.x += load_shared_float(from);
      sum.y += load_shared_float(from + kRowBytes);
    }
    return sum;
  }
  /// Of a bias (0) or a norm's weight (1), of the group at `place`, whose first column is `group_column`.
  __device__ __forceinline__ float2 constants(int which, const float* vector, int place, int group_column, bool real) const {
    if (p_.ends_ahead) return vector ? shared_pair(vector_at(which, place) + within() * 4) : make_float2(0, 0);
    return vector && real ? constant_pair(vector, group_column + within(), p_.g.end.columns) : make_float2(0, 0);
  }

  /// Four lanes share a token.
  __device__ __forceinline__ void leave_squares(float squares, bool real) const {
    squares += __shfl_xor_sync(0xffffffffu, squares, 1);
    squares += __shfl_xor_sync(0xffffffffu, squares, 2);
    const int m = static_cast<int>(p_.g.m);
    const int part = static_cast<int>(blockIdx.x) * parts_of_block(kN) + static_cast<int>(threadIdx.x) / (4 * kN);
    if (real && threadIdx.x % 4 == 0 && token() < m)
      p_.g.behind.squares[(part / 4 * m + token()) * 4 + part % 4] = squares;
  }

  /// Returns the squares of what it wrote, where a norm is prepared.
  __device__ __forceinline__ float finish_plain(int place, int group_column, float factor, bool real) const {
    const EpilogueParams& e = p_.g.end;
    const int64_t column = group_column + within();
    float2 residual = make_float2(0, 0), scale = make_float2(1, 1);
    if (e.residual.data) {
      if (p_.ends_ahead)
        residual = pair_beside(place);
      else if (real)
        residual = load_pair(e.residual, token(), column, e.columns);
    }
    if (e.scale && real) scale = constant_pair(e.scale, column, e.columns);
    const float2 bias = constants(0, e.bias, place, group_column, real);
    float2 v = sum(place);
    v = make_float2(fmaf(v.x, factor, bias.x), fmaf(v.y, factor, bias.y));
    if (p_.g.gelu) v = make_float2(fast_gelu(v.x), fast_gelu(v.y));
    v = make_float2(fmaf(v.x, scale.x, residual.x), fmaf(v.y, scale.y, residual.y));
    if (real) store_pair(e.out, token(), column, e.columns, v.x, v.y);
    const NormBehind& norm = p_.g.behind;
    if (!norm.weight) return 0;
    const float2 w = constants(1, norm.weight, place, group_column, real);
    if (real) store_pair({norm.rows, norm.stride, Half2<T>::kDType}, token(), column, e.columns, v.x * w.x, v.y * w.y);
    return v.x * v.x + v.y * v.y;
  }

  /// Two pairs of one head: rotated to their places among the queries or in the cache; values go there as they are.
  __device__ __forceinline__ void finish_rotated(int place, int group_column, int slot, float factor, bool real) const {
    const RotaryParams& r = p_.rotary;
    const EpilogueParams& e = p_.g.end;
    const int head = slab_, column = group_column + within(), d = column - head * 2 * r.half;
    if (slot < 0) return;
    float2 cosine = make_float2(1, 1), sine = make_float2(0, 0);
    if (rotates()) {
      const float* angles = r.cos_sin + token() * r.cos_sin_stride + d;
      if (p_.ends_ahead) {
        cosine = pair_beside(place);
        sine = pair_beside(place + 1);
      } else if (real) {
        cosine = make_float2(angles[0], angles[1]);
        sine = make_float2(angles[r.half], angles[r.half + 1]);
      }
    }
    T* const to = head < r.heads ? static_cast<T*>(e.out.data) + token() * e.out.stride + column
                                 : cache_place<T>(r, slot, head, head >= r.heads + r.kv_heads) + d;
    const float2 bias = constants(0, e.bias, place, group_column, real),
                 partner_bias = constants(0, e.bias, place + 1, group_column + r.half, real);
    float2 first = sum(place), second = sum(place + 1);
    first = make_float2(fmaf(first.x, factor, bias.x), fmaf(first.y, factor, bias.y));
    second = make_float2(fmaf(second.x, factor, partner_bias.x), fmaf(second.y, factor, partner_bias.y));
    if (!real) return;
    *reinterpret_cast<uint32_t*>(to) =
        pack2<T>(first.x * cosine.x - second.x * sine.x, first.y * cosine.y - second.y * sine.y);
    *reinterpret_cast<uint32_t*>(to + r.half) =
        pack2<T>(second.x * cosine.x + first.x * sine.x, second.y * cosine.y + first.y * sine.y);
  }

  const NarrowParams& p_;
  int slab_, rank_;
  Places at_;
  int together_, units_;
  int own_, places_;  ///< units that the block ends; room for each block's groups
};

#endif

}  // namespace tessera::cuda
