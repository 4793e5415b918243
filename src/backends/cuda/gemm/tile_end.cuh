#pragma once

// The end of a product's tile (bias, activation, layer scale, residual, sums of rows) by warps of its own, while others multiply the next
// tile: a warp that hands wgmma over stands still meanwhile, and what it did beside them held them up by a fifth. The sums go through shared
// memory, rounded to 16 bits as the reference rounds its products, and are ended a row at a time: whole rows leave in whole lines of memory.

#include <algorithm>

#include "backends/cuda/fast.cuh"
#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/wgmma.cuh"

namespace tessera::cuda {

/// The ends that are made so, each a kernel of its own: one with all of them would not fit its registers.
enum class TileEnd : uint8_t {
  kNone,    ///< everything else: ended by those who multiply, from their full sums
  kHalf,    ///< 16-bit result, bias; the division by x's deviation
  kGelu,    ///< the same and GELU
  kGated,   ///< 16-bit result of gate and up
  kFloat,   ///< f32 result that an f32 residual joins (others keep their full sums): bias, layer scale
  kStream,  ///< 16-bit result that a 16-bit residual joins: bias, layer scale; the sums of its rows
};

inline bool aligned_floats(const plain::Elements& m) { return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.stride % 4 == 0; }

inline TileEnd tile_end(const GemmParams& g) {
  const auto end = EndKind(g.end_kind);
  if (end == EndKind::kGeneral || g.end.columns % 32 != 0) return TileEnd::kNone;
  if (g.gated) return end == EndKind::kHalf ? TileEnd::kGated : TileEnd::kNone;
  if (end == EndKind::kStream) return g.gelu ? TileEnd::kNone : TileEnd::kStream;
  if (end == EndKind::kFloat)
    return g.gelu || !g.end.residual.data || !aligned_floats(g.end.out) || !aligned_floats(g.end.residual) ? TileEnd::kNone : TileEnd::kFloat;
  return g.gelu ? TileEnd::kGelu : TileEnd::kHalf;
}
/// Ends that may divide by the deviations of x's rows.
constexpr bool divides(TileEnd kind) { return kind == TileEnd::kHalf || kind == TileEnd::kGelu; }

inline constexpr int kEndWarps = 3;  ///< the warps beside the one that brings operands

/// kCount rows of kColumns 16-bit numbers in shared memory at a multiple of 1024. The 16-byte pieces of a row change places by its number, so that
/// neither those who write columns nor those who read rows meet in a bank.
template <int kCount, int kColumns>
struct StagedRows {
  static constexpr int kPitch = kColumns * 2, kBytes = kCount * kPitch;
  uint32_t base;

#ifdef TESSERA_WGMMA_HERE
  /// By a warp: the wgmma sums of 16 rows from `row0` on, times one factor for each of the thread's two rows.
  template <class T>
  __device__ __forceinline__ void store(int row0, const float* d, float upper, float lower) const {
    const uint32_t lane = threadIdx.x % 32, row = static_cast<uint32_t>(row0) + lane / 8 % 2 * 8 + lane % 8;
    const uint32_t to = base + row * kPitch + ((lane / 16 ^ lane % 8) << 4);
#pragma unroll
    for (int t = 0; t < kColumns / 8; t += 2) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float* of = d + 4 * (t + i);
        words[2 * i] = pack2<T>(of[0] * upper, of[1] * upper);
        words[2 * i + 1] = pack2<T>(of[2] * lower, of[3] * lower);
      }
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to ^ static_cast<uint32_t>(t << 4)), "r"(words[0]),
                   "r"(words[1]), "r"(words[2]), "r"(words[3])
                   : "memory");
    }
  }
  /// Columns 8 * piece .. + 7 of a row.
  __device__ __forceinline__ uint4 piece(int row, int piece) const {
    return load_shared(base + static_cast<uint32_t>(row * kPitch + ((piece ^ (row & 7)) << 4)));
  }
#endif
};

#ifdef TESSERA_WGMMA_HERE

/// Of a row of x, by its sum and the sum of its squares.
__device__ __forceinline__ float one_by_deviation(const GemmParams& g, float sum, float squares) {
  const float each = 1.0f / static_cast<float>(g.k), mean = sum * each;
  return rsqrtf(fmaxf(squares * each - mean * mean, 0.0f) + g.x_eps);
}

/// The same, from the parts of both that `row` of x has.
__device__ __forceinline__ float one_by_deviation(const GemmParams& g, int row) {
  const int slots = static_cast<int>(g.k) / static_cast<int>(kSumColumns);
  const float2* from = g.x_sums + static_cast<int64_t>(min(row, static_cast<int>(g.m) - 1)) * slots;
  float2 sum = make_float2(0, 0);
#pragma unroll 8
  for (int i = 0; i < slots; ++i) sum = make_float2(sum.x + from[i].x, sum.y + from[i].y);
  return one_by_deviation(g, sum.x, sum.y);
}

template <class T, TileEnd kKind>
class RowEnd {
 public:
  __device__ __forceinline__ explicit RowEnd(const GemmParams& g) : g_(g) {}

  /// By warp `warp` of `warps`: its share of kCount rows from `row0` on of kColumns packed columns from `packed0` on. What else they need is
  /// asked for before `wait`, which returns when `rows` are there.
  template <int kCount, int kColumns, class Wait>
  __device__ __forceinline__ void run(const StagedRows<kCount, kColumns>& rows, int row0, int packed0, int warp, int warps, Wait wait) const {
    constexpr int kLanes = kColumns / (kGated ? 16 : 8);  // that share a row, 8 columns of the result each
    constexpr int kAtOnce = 32 / kLanes;
    const int apart = warps * kAtOnce;
    const int lane = static_cast<int>(threadIdx.x) % 32, piece = lane % kLanes, column = (kGated ? packed0 / 2 : packed0) + 8 * piece;
    const int first = warp * kAtOnce + lane / kLanes;
    const bool there = column < static_cast<int>(g_.end.columns);
    const int count = min(kCount, static_cast<int>(g_.m) - row0), own_count = there ? count : 0;
    const Vectors by(g_.end, column, there);
    // A row after another: addresses would be a fifth of all instructions.
    Out* to = static_cast<Out*>(g_.end.out.data) + (row0 + first) * g_.end.out.stride + column;
    const Out* from = static_cast<const Out*>(g_.end.residual.data) + (row0 + first) * g_.end.residual.stride + column;
    const int64_t to_step = apart * g_.end.out.stride, from_step = apart * g_.end.residual.stride;
    Residual residual[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i, from += from_step) residual[i].load(from, first + i * apart < own_count);
    wait();
#pragma unroll 1
    for (int row = first; row < kCount; row += kBatch * apart) {
      uint4 sums[kBatch][kPieces];
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
#pragma unroll
        for (int half = 0; half < kPieces; ++half) sums[i][half] = rows.piece(min(row + i * apart, kCount - 1), kPieces * piece + half);
      float row_sums[2 * kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i, to += to_step, from += from_step) {
        finish(by, sums[i], residual[i], to, row + i * apart < own_count, row_sums + 2 * i);
        residual[i].load(from, row + (kBatch + i) * apart < own_count);
      }
      if constexpr (kStream) {
        static_assert(kBatch == 4);
        const int summed = row + lane % 8 / 2 * apart;
        if (g_.out_sums) leave_sums(row_sums, row0 + summed, column, summed < count);
      }
    }
  }

 private:
  static constexpr bool kGated = kKind == TileEnd::kGated, kFloat = kKind == TileEnd::kFloat, kStream = kKind == TileEnd::kStream;
  using Out = std::conditional_t<kFloat, float, T>;  ///< of the result and the residual
  static constexpr int kPieces = kGated ? 2 : 1;  ///< 8 columns of gates, and of ups
  static constexpr int kBatch = kFloat ? 2 : 4;   ///< rows that a lane has under way

  /// What a lane's 8 columns add and multiply. Of a gated weight: gates' bias, ups' bias.
  struct Vectors {
    float2 bias[4], other[4];
    __device__ __forceinline__ Vectors(const EpilogueParams& e, int column, bool there) {
      load(bias, e.bias, column, there, 0.0f);
      if constexpr (kGated)
        load(other, e.bias ? e.bias + e.columns : nullptr, column, there, 0.0f);
      else if constexpr (kFloat || kStream)
        load(other, e.scale, column, there, 1.0f);
    }
    __device__ __forceinline__ static void load(float2 (&to)[4], const float* from, int column, bool there, float otherwise) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        to[i] = from && there ? __ldg(reinterpret_cast<const float2*>(from + column) + i) : make_float2(otherwise, otherwise);
    }
  };

  /// 8 columns of a row that join the result.
  struct Residual {
    uint4 of[kFloat ? 2 : 1];
    __device__ __forceinline__ void load(const Out* from, bool inside) {
      if constexpr (kFloat || kStream)
#pragma unroll
        for (int i = 0; i < (kFloat ? 2 : 1); ++i) of[i] = inside ? reinterpret_cast<const uint4*>(from)[i] : make_uint4(0, 0, 0, 0);
    }
  };

  /// `row_sums`: of the stored columns and of their squares, for kStream.
  __device__ __forceinline__ void finish(const Vectors& by, const uint4* sums, const Residual& residual, Out* to, bool inside, float* row_sums) const {
    float v[8];
    unpack8<T>(sums[0], v);
    const float* bias = &by.bias[0].x;
    const float* other = &by.other[0].x;
    if constexpr (kFloat) {
      const float* from = reinterpret_cast<const float*>(residual.of);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = fmaf(v[i] + bias[i], other[i], from[i]);
      auto* halves = reinterpret_cast<float4*>(to);
      if (inside) halves[0] = make_float4(v[0], v[1], v[2], v[3]), halves[1] = make_float4(v[4], v[5], v[6], v[7]);
      return;
    }
    if constexpr (kGated) {
      float ups[8];
      unpack8<T>(sums[1], ups);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = fast_silu(v[i] + bias[i]) * (ups[i] + other[i]);
    } else if constexpr (kStream) {
      float from[8];
      unpack8<T>(residual.of[0], from);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = fmaf(v[i] + bias[i], other[i], from[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = kKind == TileEnd::kGelu ? fast_gelu(v[i] + bias[i]) : v[i] + bias[i];
    }
    const uint4 done = pack8<T>(v);
    if (inside) *reinterpret_cast<uint4*>(to) = done;
    if constexpr (kStream) {
      unpack8<T>(done, v);
      row_sums[0] = row_sums[1] = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        row_sums[0] += v[i];
        row_sums[1] = fmaf(v[i], v[i], row_sums[1]);
      }
    }
  }

  /// Four rows' sums and sums of squares, of 8 lanes (64 columns) each: lane i of 8 gets number i of them, over all lanes, and stores it.
  __device__ __forceinline__ void leave_sums(float (&v)[8], int row, int column, bool inside) const {
    const int lane = static_cast<int>(threadIdx.x) % 8;
#pragma unroll
    for (int half = 4; half >= 1; half /= 2)
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const bool upper = (lane & half) != 0;
        const float got = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + half], half);
        v[i] = (upper ? v[i + half] : v[i]) + got;
      }
    const int group = column - 8 * lane;
    if (!inside || group >= static_cast<int>(g_.end.columns)) return;
    float2* to = g_.out_sums + (row * static_cast<int>(g_.end.columns) + group) / static_cast<int>(kSumColumns);
    reinterpret_cast<float*>(to)[lane % 2] = v[0];
  }

  const GemmParams& g_;
};

#endif

}  // namespace tessera::cuda
