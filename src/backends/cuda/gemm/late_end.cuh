#pragma once

// The end of a product's tile, put off: a thread packs its 128 sums of a 64 x 256 tile into 16-bit pairs (as the
// reference rounds its products) and ends them in 16 pieces while the next tile's products run on the tensor cores.

#include "backends/cuda/fast.cuh"
#include "backends/cuda/gemm/gemm.h"

namespace tessera::cuda {

/// The ends that can be put off, each a kernel of its own: one with all of them would not fit its registers.
enum class LateKind : uint8_t {
  kNone,   ///< everything else: ended at once
  kHalf,   ///< 16-bit result, bias
  kGelu,   ///< 16-bit result, bias and GELU
  kGated,  ///< 16-bit result of gate and up
  kFloat,  ///< f32 result that an f32 residual joins (others keep their full sums): bias, layer scale
};

inline LateKind late_kind(const GemmParams& g) {
  const auto end = EndKind(g.end_kind);
  if (end == EndKind::kGeneral || g.end.columns % 32 != 0) return LateKind::kNone;
  if (g.gated) return end == EndKind::kHalf ? LateKind::kGated : LateKind::kNone;
  if (end == EndKind::kFloat) return g.gelu || !g.end.residual.data ? LateKind::kNone : LateKind::kFloat;
  return g.gelu ? LateKind::kGelu : LateKind::kHalf;
}

template <class T, LateKind kKind>
class LateEnd {
 public:
  static constexpr int kPieces = kKind == LateKind::kGated ? 8 : 16;

  __device__ __forceinline__ explicit LateEnd(const GemmParams& g) : g_(g) {}
  __device__ __forceinline__ bool pending() const { return pending_; }

  /// Sums d[4 t + 2 h ..] are row `row` + 8 h, packed columns packed0 + 8 t + 2 (lane % 4) (+ 1).
  __device__ __forceinline__ void take(int64_t row, int64_t packed0, const float* d) {
    if constexpr (kKind == LateKind::kNone) {
      end_now<32>(row, packed0, d);
    } else {
      pending_ = true;
      row_ = static_cast<int>(row);
      column_ = static_cast<int>(kKind == LateKind::kGated ? packed0 / 2 : packed0);
#pragma unroll
      for (int t = 0; t < 32; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h) words_[t][h] = pack2<T>(d[4 * t + 2 * h], d[4 * t + 2 * h + 1]);
    }
  }

  /// Ends kTiles tiles of 8 columns at once.
  template <int kTiles>
  __device__ __forceinline__ void end_now(int64_t row, int64_t packed0, const float* d) const {
    const EpilogueParams& e = g_.end;
    const int lane = 2 * static_cast<int>(threadIdx.x % 4), r = static_cast<int>(row), m = static_cast<int>(g_.m);
#pragma unroll
    for (int j = 0; j < kTiles; j += 8) {
      const auto packed = static_cast<int>(packed0) + 8 * j;
      if constexpr (kKind == LateKind::kNone) {
        finish_any<T, 8>(e, EndKind(g_.end_kind), g_.gated, g_.gelu, row, g_.m, packed, lane, d + 4 * j);
      } else if constexpr (kKind == LateKind::kGated) {
        if (packed / 2 < e.columns) finish_gated_half<T, 4>(e, r, m, packed / 2 + lane, d + 4 * j);
      } else {
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
          if (packed + 8 * i >= e.columns) continue;
          if constexpr (kKind == LateKind::kFloat)
            finish_float<4>(e, false, r, m, packed + 8 * i + lane, d + 4 * (j + i));
          else
            finish_half<T, 4>(e, kKind == LateKind::kGelu, r, m, packed + 8 * i + lane, d + 4 * (j + i));
        }
      }
    }
  }

  /// Ends what is pending without products to hide behind.
  __device__ __forceinline__ void flush() {
    if (!pending_) return;
    pending_ = false;
    prefetch_first();
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) end(piece);
  }

  /// What the first pieces read from memory. Each piece asks for what the kAhead-th after it needs.
  __device__ __forceinline__ void prefetch_first() {
#pragma unroll
    for (int piece = 0; piece < kAhead; ++piece) prefetch(piece);
  }

  /// Pieces come in order, prefetch_first() before the first. Piece 2 c + h is 32 columns of the result in rows h.
  __device__ __forceinline__ void end(int piece) {
    const int c = piece / 2, h = piece % 2, row = row_ + 8 * h, column = column_ + 32 * c;
    if (column >= g_.end.columns) return;
    if constexpr (kKind == LateKind::kFloat)
      end_float(piece, row, column);
    else if constexpr (kKind == LateKind::kGated)
      end_gated(c, h, row, column);
    else if constexpr (kKind != LateKind::kNone)
      end_half(c, h, row, column);
  }

 private:
  static constexpr int kAhead = 2;  ///< pieces that a residual is asked for ahead of its use: memory's latency under load

  __device__ __forceinline__ void prefetch(int piece) {
    if constexpr (kKind == LateKind::kFloat) {
      const int row = row_ + 8 * (piece % 2), column = column_ + piece / 2 * 32 + 2 * (threadIdx.x % 4);
      const auto* from = static_cast<const float*>(g_.end.residual.data);
      const bool inside = from && row < g_.m && column < g_.end.columns;
      from += row * g_.end.residual.stride + column;
#pragma unroll
      for (int t = 0; t < 4; ++t)
        residual_[piece % kAhead][t] = inside ? *reinterpret_cast<const float2*>(from + 8 * t) : make_float2(0, 0);
    }
  }

  /// Bias (or scale) of a thread's pairs in four tiles of 8 columns from `column`.
  __device__ __forceinline__ void constants(const float* from, int column, float otherwise, float2* to) const {
#pragma unroll
    for (int t = 0; t < 4; ++t)
      to[t] = from ? __ldg(reinterpret_cast<const float2*>(from + column + 8 * t + 2 * (threadIdx.x % 4)))
                   : make_float2(otherwise, otherwise);
  }

  __device__ __forceinline__ void store(int row, int column, uint32_t* words) const {
    store_pieces<T, 4>(static_cast<T*>(g_.end.out.data) + row * g_.end.out.stride + column, words, threadIdx.x % 4, row < g_.m);
  }

  __device__ __forceinline__ void end_half(int c, int h, int row, int column) const {
    float2 bias[4];
    constants(g_.end.bias, column, 0.0f, bias);
    uint32_t words[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float2 v = unpack2<T>(words_[4 * c + t][h]);
      const float a = v.x + bias[t].x, b = v.y + bias[t].y;
      words[t] = kKind == LateKind::kGelu ? pack2<T>(fast_gelu(a), fast_gelu(b)) : pack2<T>(a, b);
    }
    store(row, column, words);
  }

  /// Four pairs of gate and up: tiles 8 c to 8 c + 7.
  __device__ __forceinline__ void end_gated(int c, int h, int row, int column) const {
    float2 gate_bias[4], up_bias[4];
    constants(g_.end.bias, column, 0.0f, gate_bias);
    constants(g_.end.bias ? g_.end.bias + g_.end.columns : nullptr, column, 0.0f, up_bias);
    uint32_t words[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float2 gate = unpack2<T>(words_[8 * c + 2 * t][h]), up = unpack2<T>(words_[8 * c + 2 * t + 1][h]);
      words[t] = pack2<T>(fast_silu(gate.x + gate_bias[t].x) * (up.x + up_bias[t].x),
                          fast_silu(gate.y + gate_bias[t].y) * (up.y + up_bias[t].y));
    }
    store(row, column, words);
  }

  __device__ __forceinline__ void end_float(int piece, int row, int column) {
    float2 bias[4], scale[4], residual[4];
    constants(g_.end.bias, column, 0.0f, bias);
    constants(g_.end.scale, column, 1.0f, scale);
#pragma unroll
    for (int t = 0; t < 4; ++t) residual[t] = residual_[piece % kAhead][t];
    if (piece + kAhead < kPieces) prefetch(piece + kAhead);
    float* to = static_cast<float*>(g_.end.out.data) + row * g_.end.out.stride + column + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float2 v = unpack2<T>(words_[piece / 2 * 4 + t][piece % 2]);
      if (row < g_.m)
        store_whole(to + 8 * t, make_float2(fmaf(v.x + bias[t].x, scale[t].x, residual[t].x),
                                            fmaf(v.y + bias[t].y, scale[t].y, residual[t].y)));
    }
  }

  const GemmParams& g_;
  uint32_t words_[32][2];
  float2 residual_[kAhead][4];
  int row_ = 0, column_ = 0;
  bool pending_ = false;
};

}  // namespace tessera::cuda
