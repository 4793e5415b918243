#pragma once

// The end of a product's tile, put off: a thread packs its 128 sums of a 64 x 256 tile into 16-bit pairs (as the
// reference rounds its products) and ends them in 16 pieces, four groups of four, while the next tile's products run on the tensor
// cores. A group is always made of the first registers, and the others move up: sixteen pieces written out were 60 KB of code,
// which came from memory at ten clocks an instruction.

#include "backends/cuda/fast.cuh"
#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/wgmma.cuh"

namespace tessera::cuda {

/// The ends that can be put off, each a kernel of its own: one with all of them would not fit its registers.
enum class LateKind : uint8_t {
  kNone,    ///< everything else: ended at once
  kHalf,    ///< 16-bit result, bias; the division by x's deviation
  kGelu,    ///< the same and GELU
  kGated,   ///< 16-bit result of gate and up
  kFloat,   ///< f32 result that an f32 residual joins (others keep their full sums): bias, layer scale
  kStream,  ///< 16-bit result that a 16-bit residual joins: bias, layer scale; the sums of its rows
};

inline LateKind late_kind(const GemmParams& g) {
  const auto end = EndKind(g.end_kind);
  if (end == EndKind::kGeneral || g.end.columns % 32 != 0) return LateKind::kNone;
  if (g.gated) return end == EndKind::kHalf ? LateKind::kGated : LateKind::kNone;
  if (end == EndKind::kStream) return g.gelu ? LateKind::kNone : LateKind::kStream;
  if (end == EndKind::kFloat) return g.gelu || !g.end.residual.data ? LateKind::kNone : LateKind::kFloat;
  return g.gelu ? LateKind::kGelu : LateKind::kHalf;
}

/// Shared memory of a warpgroup for bias and layer scale of the columns of two tiles: of the one that is made and the one that
/// is ended.
inline constexpr int kConstantBytes = 2 * 2 * 256 * 4;

#ifdef TESSERA_WGMMA_HERE

template <class T, LateKind kKind>
class LateEnd {
 public:
  static constexpr int kGroups = 4;
  static constexpr int kPieces = kKind == LateKind::kGated ? 2 : 4;  ///< of a group

  /// `room`: kConstantBytes of shared memory of this warpgroup's own; `own`: its number; `row_in_tile`: the thread's first row.
  __device__ __forceinline__ LateEnd(const GemmParams& g, uint32_t room, int own, int row_in_tile)
      : g_(g), held_(room), next_(room + kConstantBytes / 2), own_(own), row_in_tile_(row_in_tile) {}
  __device__ __forceinline__ bool pending() const { return pending_; }

  /// For a tile that begins, while its first products run: asks for what keep_constants() keeps. Of the sums of a row of x each
  /// of the four lanes that share it reads a quarter.
  __device__ __forceinline__ void look_ahead(int tile_row, int packed0) {
    if constexpr (kKind == LateKind::kNone) return;
    const int pair = 2 * (static_cast<int>(threadIdx.x) % 128), columns = static_cast<int>(g_.end.columns);
    // Of a gated weight: 128 of the gates, then 128 of the ups.
    const int column = kKind == LateKind::kGated ? packed0 / 2 + pair % 128 : packed0 + pair;
    const bool there = column < columns;
    if (g_.end.bias)
      bias_ = there ? __ldg(reinterpret_cast<const float2*>(g_.end.bias + (kKind == LateKind::kGated && pair >= 128 ? columns + column : column)))
                    : make_float2(0, 0);
    if (kScales && g_.end.scale) scale_ = there ? __ldg(reinterpret_cast<const float2*>(g_.end.scale + column)) : make_float2(0, 0);
    if constexpr (kDivides) {
      if (!g_.x_sums) return;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2* from = sums_of(tile_row, h);
#pragma unroll
        for (int i = 0; i < kSlots; ++i) {
          const int slot = threadIdx.x % 4 + 4 * i;
          x_sums_[h][i] = slot < slots() ? from[slot] : make_float2(0, 0);
        }
      }
    }
  }

  /// Some steps later, before take(): lets the other warps have what came, and finds 1 / deviation of the thread's rows of x.
  __device__ __forceinline__ void keep_constants(int tile_row) {
    if constexpr (kKind == LateKind::kNone) return;
    const uint32_t to = next_ + 8 * (threadIdx.x % 128);
    if (g_.end.bias) store_shared(to, bias_);
    if (kScales && g_.end.scale) store_shared(to + kConstantBytes / 4, scale_);
    if constexpr (kDivides) {
      if (!g_.x_sums) return;
      const float each = 1.0f / static_cast<float>(g_.k);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float2 sum = make_float2(0, 0);
#pragma unroll
        for (int i = 0; i < kSlots; ++i) sum = make_float2(sum.x + x_sums_[h][i].x, sum.y + x_sums_[h][i].y);
        for (int slot = threadIdx.x % 4 + 4 * kSlots; slot < slots(); slot += 4) {  // rows of more than 1024 columns
          const float2 v = sums_of(tile_row, h)[slot];
          sum = make_float2(sum.x + v.x, sum.y + v.y);
        }
        const float mean = quad_sum(sum.x) * each;
        factor_[h] = rsqrtf(fmaxf(quad_sum(sum.y) * each - mean * mean, 0.0f) + g_.x_eps);
      }
    }
  }

  /// Sums d[4 t + 2 h ..] are row tile_row + row_in_tile + 8 h, packed columns packed0 + 8 t + 2 (lane % 4) (+ 1).
  __device__ __forceinline__ void take(int tile_row, int packed0, const float* d) {
    const int row = tile_row + row_in_tile_;
    if constexpr (kKind == LateKind::kNone) {
#pragma unroll
      for (int i = 0; i < 4; ++i) end_now(row, packed0, d, i);
    } else {
      named_barrier_sync(1 + own_, 128);  // constants are kept, and those of the tile before are not read any more
      const uint32_t free = held_;
      held_ = next_;
      next_ = free;
      constants_ = held_;
      pending_ = true;
      row_ = row;
      column_ = kKind == LateKind::kGated ? packed0 / 2 : packed0;
      end_column_ = min(column_ + kGroups * kGroupColumns, static_cast<int>(g_.end.columns));
      ask();
      const int64_t at = row * g_.end.out.stride + column_;
      if constexpr (kKind == LateKind::kFloat)
        out_ = static_cast<float*>(g_.end.out.data) + at + 2 * (threadIdx.x % 4);
      else
        out_ = static_cast<T*>(g_.end.out.data) + at + 8 * (threadIdx.x % 4);
      if (kDivides && g_.x_sums)
        pack<true>(d);
      else
        pack<false>(d);
    }
  }

  /// Ends what is pending without products to hide behind: of its groups, 64 packed columns each, those g with g % parts == part.
  __device__ __forceinline__ void flush(int part, int parts) {
    if (!pending_) return;
    pending_ = false;
#pragma unroll 1
    for (int g = 0; g < kGroups; ++g) {
      if (g % parts == part) {
        if (parts > 1) ask();
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) end(piece);
      }
      move_up();
    }
  }

  /// A split tile, whose groups g with g % parts == part are whole: ends those at once.
  __device__ __forceinline__ void end_part(int tile_row, int packed0, const float* d, int part, int parts) {
    if constexpr (kKind == LateKind::kNone) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i % parts == part) end_now(tile_row + row_in_tile_, packed0, d, i);
    } else {
      take(tile_row, packed0, d);
      flush(part, parts);
    }
  }

  /// The pieces of a group come in order. Piece 2 c + h is 32 columns of the result in rows h. No branch on what is inside the
  /// matrix: a load that has to be there at a join could not run ahead.
  __device__ __forceinline__ void end(int piece) {
    if constexpr (kKind == LateKind::kFloat)
      end_float(piece);
    else if constexpr (kKind == LateKind::kStream)
      end_stream(piece);
    else if constexpr (kKind == LateKind::kGated)
      end_gated(piece);
    else if constexpr (kKind != LateKind::kNone)
      end_half(piece);
  }

  /// After the pieces of a group: the next one becomes the first. After the last the tile is ended.
  __device__ __forceinline__ void move_up() {
#pragma unroll
    for (int t = 0; t < 24; ++t)
#pragma unroll
      for (int h = 0; h < 2; ++h) words_[t][h] = words_[t + 8][h];
    column_ += kGroupColumns;
    constants_ += kGroupColumns * 4;
    if constexpr (kKind == LateKind::kFloat)
      out_ = static_cast<float*>(out_) + kGroupColumns;
    else
      out_ = static_cast<T*>(out_) + kGroupColumns;
  }
  __device__ __forceinline__ void ended() { pending_ = false; }

 private:
  static constexpr int kGroupColumns = kKind == LateKind::kGated ? 32 : 64;  ///< of the result
  static constexpr bool kScales = kKind == LateKind::kFloat || kKind == LateKind::kStream;
  static constexpr int kSlots = 4;  ///< pairs of sums that a lane holds of a row
  static constexpr bool kDivides = kKind == LateKind::kHalf || kKind == LateKind::kGelu;
  /// Pieces that a residual is asked for ahead of its use: memory's latency under load.
  static constexpr int kAhead = kKind == LateKind::kStream ? 4 : 2;

  __device__ __forceinline__ static float quad_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
  }

  __device__ __forceinline__ int slots() const { return static_cast<int>(g_.k) / static_cast<int>(kSumColumns); }
  __device__ __forceinline__ const float2* sums_of(int tile_row, int h) const {
    return g_.x_sums + static_cast<int64_t>(min(tile_row + row_in_tile_ + 8 * h, static_cast<int>(g_.m) - 1)) * slots();
  }
  __device__ __forceinline__ static void store_shared(uint32_t to, float2 v) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(v.x), "f"(v.y) : "memory");
  }

  template <bool kScaled>
  __device__ __forceinline__ void pack(const float* d) {
#pragma unroll
    for (int t = 0; t < 32; ++t)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        words_[t][h] = kScaled ? pack2<T>(d[4 * t + 2 * h] * factor_[h], d[4 * t + 2 * h + 1] * factor_[h])
                               : pack2<T>(d[4 * t + 2 * h], d[4 * t + 2 * h + 1]);
  }

  /// Slice i, 64 columns, by the ends of all kernels.
  __device__ __forceinline__ void end_now(int row, int packed0, const float* d, int i) const {
    finish_any<T, 8>(g_.end, EndKind(g_.end_kind), g_.gated, g_.gelu, row, g_.m, packed0 + 64 * i,
                     2 * static_cast<int>(threadIdx.x % 4), d + 32 * i);
  }

  __device__ __forceinline__ bool inside(int piece) const {
    return row_ + piece % 2 * 8 < static_cast<int>(g_.m) && column_ + piece / 2 * 32 < end_column_;
  }
  /// This lane's place in the result of a piece, in elements of the result.
  template <class E>
  __device__ __forceinline__ E* place(int piece) const {
    return static_cast<E*>(out_) + (piece % 2 == 0 ? 0 : 8 * g_.end.out.stride) + piece / 2 * 32;
  }

  /// 64 bytes of a row in each piece would be single bursts of the memory; L2 takes the 256 around them.
  __device__ __forceinline__ static uint4 load_wide(const T* from) {
    uint4 v;
    asm volatile("ld.global.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
  }

  /// What a piece reads from memory: the first are asked for when the tile is taken, and each asks for the kAhead-th after it, which may
  /// be one of the next group.
  __device__ __forceinline__ void ask() {
#pragma unroll
    for (int piece = 0; piece < kAhead; ++piece) prefetch(piece);
  }
  __device__ __forceinline__ void prefetch(int piece) {
    const int lane = static_cast<int>(threadIdx.x) % 4, row = row_ + 8 * (piece % 2), column = column_ + piece / 2 * 32;
    if constexpr (kKind == LateKind::kFloat) {
      const auto* from = static_cast<const float*>(g_.end.residual.data) + row * g_.end.residual.stride + column + 2 * lane;
#pragma unroll
      for (int t = 0; t < 4; ++t)
        residual_[piece % kAhead][t] = inside(piece) ? *reinterpret_cast<const float2*>(from + 8 * t) : make_float2(0, 0);
    } else if constexpr (kKind == LateKind::kStream) {
      const auto* from = static_cast<const T*>(g_.end.residual.data) + row * g_.end.residual.stride + column + 8 * lane;
      stream_[piece % kAhead] = inside(piece) ? load_wide(from) : make_uint4(0, 0, 0, 0);
    }
  }

  /// A thread's pairs in four tiles of 8 columns, `column` from the tile's first; `otherwise` where there are none.
  __device__ __forceinline__ static void pairs(bool there, uint32_t from, int column, float otherwise, float2 (&to)[4]) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      to[t] = make_float2(otherwise, otherwise);
      if (there)
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(to[t].x), "=f"(to[t].y) : "r"(from + 4 * (column + 8 * t + 2 * (threadIdx.x % 4))));
    }
  }
  __device__ __forceinline__ void bias_of(int column, float2 (&to)[4]) const {
    pairs(g_.end.bias != nullptr, constants_, column, 0.0f, to);
  }
  __device__ __forceinline__ void scale_of(int column, float2 (&to)[4]) const {
    pairs(g_.end.scale != nullptr, constants_ + kConstantBytes / 4, column, 1.0f, to);
  }

  __device__ __forceinline__ void store(int piece, uint32_t* words) const {
    gather_pieces(words, threadIdx.x % 4);
    if (inside(piece)) store_whole(place<T>(piece), words);
  }

  __device__ __forceinline__ void end_half(int piece) const {
    float2 bias[4];
    bias_of(piece / 2 * 32, bias);
    uint32_t words[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float2 v = unpack2<T>(words_[piece / 2 * 4 + t][piece % 2]);
      const float a = v.x + bias[t].x, b = v.y + bias[t].y;
      words[t] = kKind == LateKind::kGelu ? pack2<T>(fast_gelu(a), fast_gelu(b)) : pack2<T>(a, b);
    }
    store(piece, words);
  }

  /// Four pairs of gate and up: tiles 0 to 7.
  __device__ __forceinline__ void end_gated(int piece) const {
    const int h = piece;
    float2 gate_bias[4], up_bias[4];
    bias_of(0, gate_bias);
    bias_of(128, up_bias);
    uint32_t words[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float2 gate = unpack2<T>(words_[2 * t][h]), up = unpack2<T>(words_[2 * t + 1][h]);
      words[t] = pack2<T>(fast_silu(gate.x + gate_bias[t].x) * (up.x + up_bias[t].x),
                          fast_silu(gate.y + gate_bias[t].y) * (up.y + up_bias[t].y));
    }
    store(piece, words);
  }

  __device__ __forceinline__ void end_float(int piece) {
    float2 bias[4], scale[4], residual[4];
    bias_of(piece / 2 * 32, bias);
    scale_of(piece / 2 * 32, scale);
#pragma unroll
    for (int t = 0; t < 4; ++t) residual[t] = residual_[piece % kAhead][t];
    prefetch(piece + kAhead);
    float* to = place<float>(piece);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float2 v = unpack2<T>(words_[piece / 2 * 4 + t][piece % 2]);
      if (inside(piece))
        store_whole(to + 8 * t, make_float2(fmaf(v.x + bias[t].x, scale[t].x, residual[t].x),
                                            fmaf(v.y + bias[t].y, scale[t].y, residual[t].y)));
    }
  }

  /// The residual comes as the result goes, 16 bytes a lane, and is dealt to the lanes that hold its sums.
  __device__ __forceinline__ void end_stream(int piece) {
    const int h = piece % 2;
    float2 bias[4], scale[4];
    bias_of(piece / 2 * 32, bias);
    scale_of(piece / 2 * 32, scale);
    const uint4 got = stream_[piece % kAhead];
    uint32_t words[4] = {got.x, got.y, got.z, got.w};
    prefetch(piece + kAhead);
    gather_pieces(words, threadIdx.x % 4);
    float sum = 0, squares = 0;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float2 v = unpack2<T>(words_[piece / 2 * 4 + t][h]), residual = unpack2<T>(words[t]);
      words[t] = pack2<T>(fmaf(v.x + bias[t].x, scale[t].x, residual.x), fmaf(v.y + bias[t].y, scale[t].y, residual.y));
      const float2 stored = unpack2<T>(words[t]);
      sum += stored.x + stored.y;
      squares = fmaf(stored.x, stored.x, fmaf(stored.y, stored.y, squares));
    }
    store(piece, words);
    // Two pieces of a row are the columns that a pair of sums stands for.
    if (piece % 4 < 2) {
      half_[h] = make_float2(sum, squares);
    } else {
      sum = quad_sum(sum + half_[h].x);
      squares = quad_sum(squares + half_[h].y);
      const int row = row_ + 8 * h, column = column_ + piece / 2 * 32;
      if (threadIdx.x % 4 == 0 && g_.out_sums && inside(piece))
        store_whole(reinterpret_cast<float*>(g_.out_sums + (row * static_cast<int>(g_.end.columns) + column) / static_cast<int>(kSumColumns)),
                    make_float2(sum, squares));
    }
  }

  const GemmParams& g_;
  uint32_t held_, next_;  ///< constants of the tile that is ended, and of the one that is made: bias, then scale
  uint32_t constants_ = 0;  ///< of the group that is ended
  int own_, row_in_tile_;
  float2 bias_, scale_;
  float2 x_sums_[2][kSlots];
  float factor_[2];
  void* out_ = nullptr;  ///< this lane's place in the result of the group's first piece
  uint32_t words_[32][2];
  float2 residual_[kAhead][4];
  uint4 stream_[kAhead];
  float2 half_[2];
  int row_ = 0, column_ = 0, end_column_ = 0;  ///< of the group that is ended, and where its tile ends
  bool pending_ = false;
};

#endif

}  // namespace tessera::cuda
