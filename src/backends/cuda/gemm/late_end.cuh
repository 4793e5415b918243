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

inline bool aligned_floats(const plain::Elements& m) { return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.stride % 4 == 0; }

inline LateKind late_kind(const GemmParams& g) {
  const auto end = EndKind(g.end_kind);
  if (end == EndKind::kGeneral || g.end.columns % 32 != 0) return LateKind::kNone;
  if (g.gated) return end == EndKind::kHalf ? LateKind::kGated : LateKind::kNone;
  if (end == EndKind::kStream) return g.gelu ? LateKind::kNone : LateKind::kStream;
  if (end == EndKind::kFloat)
    return g.gelu || !g.end.residual.data || !aligned_floats(g.end.out) || !aligned_floats(g.end.residual) ? LateKind::kNone : LateKind::kFloat;
  return g.gelu ? LateKind::kGelu : LateKind::kHalf;
}

/// Neighbouring columns of the result that a thread holds: those of 16-bit results are dealt so that it stores 16 bytes of a row
/// without asking its neighbours, and so are f32's. Others stay as wgmma leaves them.
constexpr int lane_columns(LateKind kind) {
  if (kind == LateKind::kHalf || kind == LateKind::kGelu || kind == LateKind::kStream) return 8;
  return kind == LateKind::kFloat ? 4 : 2;
}

/// Shared memory of a warpgroup for bias and layer scale of the columns of two tiles: of the one that is made and the one that
/// is ended.
inline constexpr int kConstantBytes = 2 * 2 * 256 * 4;

#ifdef TESSERA_WGMMA_HERE

/// Of a row of x, by its sum and the sum of its squares.
__device__ __forceinline__ float one_by_deviation(const GemmParams& g, float sum, float squares) {
  const float each = 1.0f / static_cast<float>(g.k), mean = sum * each;
  return rsqrtf(fmaxf(squares * each - mean * mean, 0.0f) + g.x_eps);
}

template <class T, LateKind kKind>
class LateEnd {
 public:
  static constexpr int kGroups = 4;
  static constexpr int kPieces = kKind == LateKind::kGated ? 2 : 4;  ///< of a group

  /// `room`: kConstantBytes of shared memory of this warpgroup's own; `own`: its number; `row_in_tile`: the thread's first row.
  __device__ __forceinline__ LateEnd(const GemmParams& g, uint32_t room, int own, int row_in_tile)
      : g_(g), held_(room), next_(room + kConstantBytes / 2), own_(own), row_in_tile_(row_in_tile) {
    // What a product without bias or layer scale adds and multiplies.
    for (uint32_t place : {held_, next_})
      if constexpr (kScales)
        asm volatile("st.shared.v4.f32 [%0], {%1, %1, %2, %2};" ::"r"(place + 16 * (threadIdx.x % 128)), "f"(0.0f), "f"(1.0f) : "memory");
      else
        asm volatile("st.shared.v2.f32 [%0], {%1, %1};" ::"r"(place + 8 * (threadIdx.x % 128)), "f"(0.0f) : "memory");
  }
  /// Groups of a finished tile are to be ended.
  __device__ __forceinline__ bool pending() const { return kKind != LateKind::kNone && group_ < kGroups; }
  __device__ __forceinline__ bool last_group() const { return group_ == kGroups - 1; }

  /// For a tile that begins, while its first products run: asks for its bias and layer scale, and for what find_factors() needs. Of the
  /// sums of a row of x each of the four lanes that share it reads a quarter.
  __device__ __forceinline__ void look_ahead(int tile_row, int packed0) {
    if constexpr (kKind == LateKind::kNone) return;
    const int pair = 2 * (static_cast<int>(threadIdx.x) % 128), columns = static_cast<int>(g_.end.columns);
    // Of a gated weight: 128 of the gates, then 128 of the ups.
    const int column = kKind == LateKind::kGated ? packed0 / 2 + pair % 128 : packed0 + pair;
    const uint32_t to = next_ + (kScales ? 8 : 4) * pair;
    if (g_.end.bias) copy_pair(to, g_.end.bias + (kKind == LateKind::kGated && pair >= 128 ? columns : 0), column);
    if (kScales && g_.end.scale) copy_pair(to + 8, g_.end.scale, column);
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

  /// Some steps later, before take(): finds 1 / deviation of the thread's rows of x.
  __device__ __forceinline__ void find_factors(int tile_row) {
    if constexpr (kDivides) {
      if (!g_.x_sums) return;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float2 sum = make_float2(0, 0);
#pragma unroll
        for (int i = 0; i < kSlots; ++i) sum = make_float2(sum.x + x_sums_[h][i].x, sum.y + x_sums_[h][i].y);
#pragma unroll 1
        for (int slot = threadIdx.x % 4 + 4 * kSlots; slot < slots(); slot += 4) {  // rows of more than 1024 columns
          const float2 v = sums_of(tile_row, h)[slot];
          sum = make_float2(sum.x + v.x, sum.y + v.y);
        }
        factor_[h] = one_by_deviation(g_, quad_sum(sum.x), quad_sum(sum.y));
      }
    }
  }

  /// Sums d[4 t + 2 h ..] are row tile_row + row_in_tile + 8 h, packed columns packed0 + column_of(t) (+ 1).
  __device__ __forceinline__ void take(int tile_row, int packed0, const float* d) {
    if constexpr (kKind == LateKind::kNone) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) end_now(tile_row + row_in_tile_, packed0 + 64 * i, d + 32 * i);
    } else {
      open(tile_row, packed0);
      ask();
      pack<8 * kGroups>(d);
    }
  }

  /// Ends what is pending without products to hide behind.
  __device__ __forceinline__ void flush() {
#pragma unroll 1
    for (; pending(); move_up()) end_group();
  }

  /// A tile whose groups come one by one, 64 packed columns each, in rising order, and are ended at once: first open(), then these.
  __device__ __forceinline__ void open(int tile_row, int packed0) {
    if constexpr (kKind == LateKind::kNone) return;
    asm volatile("cp.async.wait_all;" ::: "memory");
    named_barrier_sync(1 + own_, 128);  // constants are there, and those of the tile before are not read any more
    const uint32_t free = held_;
    held_ = next_;
    next_ = free;
    constants_ = held_;
    group_ = 0;
    row_ = tile_row + row_in_tile_;
    column_ = kKind == LateKind::kGated ? packed0 / 2 : packed0;
    end_column_ = min(column_ + kGroups * kGroupColumns, static_cast<int>(g_.end.columns));
    const int64_t at = row_ * g_.end.out.stride + column_;
    if constexpr (kKind == LateKind::kFloat)
      out_ = static_cast<float*>(g_.end.out.data) + at + 4 * (threadIdx.x % 4);
    else
      out_ = static_cast<T*>(g_.end.out.data) + at + 8 * (threadIdx.x % 4);
  }
  __device__ __forceinline__ void end_group_now(int tile_row, int packed0, int group, const float* sums) {
    if constexpr (kKind == LateKind::kNone) {
      end_now(tile_row + row_in_tile_, packed0 + 64 * group, sums);
    } else {
#pragma unroll 1
      while (group_ < group) next_group();
      ask();
      pack<8>(sums);
      end_group();
    }
  }
  __device__ __forceinline__ void close() { group_ = kGroups; }

  /// The quarters of a group's pieces come in order. Piece 2 c + h is 32 columns of the result in rows h. No branch on what is inside
  /// the matrix: a load that has to be there at a join could not run ahead.
  __device__ __forceinline__ void end(int piece, int quarter) {
    if constexpr (kKind == LateKind::kFloat)
      end_float(piece, quarter);
    else if constexpr (kKind == LateKind::kStream)
      end_stream(piece, quarter);
    else if constexpr (kKind == LateKind::kGated)
      end_gated(piece, quarter);
    else if constexpr (kKind != LateKind::kNone)
      end_half(piece, quarter);
  }

  /// After the pieces of a group: the next one becomes the first. After the last the tile is ended.
  __device__ __forceinline__ void move_up() {
#pragma unroll
    for (int t = 0; t < 24; ++t)
#pragma unroll
      for (int h = 0; h < 2; ++h) words_[t][h] = words_[t + 8][h];
    next_group();
  }

 private:
  __device__ __forceinline__ void next_group() {
    ++group_;
    column_ += kGroupColumns;
    constants_ += kGroupColumns * (kScales ? 8 : 4);
    if constexpr (kKind == LateKind::kFloat)
      out_ = static_cast<float*>(out_) + kGroupColumns;
    else
      out_ = static_cast<T*>(out_) + kGroupColumns;
  }
  __device__ __forceinline__ void end_group() {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece)
#pragma unroll
      for (int quarter = 0; quarter < 4; ++quarter) end(piece, quarter);
  }

  static constexpr int kGroupColumns = kKind == LateKind::kGated ? 32 : 64;  ///< of the result
  static constexpr bool kScales = kKind == LateKind::kFloat || kKind == LateKind::kStream;
  static constexpr int kSlots = 4;  ///< pairs of sums that a lane holds of a row
  static constexpr bool kDivides = kKind == LateKind::kHalf || kKind == LateKind::kGelu;
  /// Pieces that a residual is asked for ahead of its use: memory's latency under load.
  static constexpr int kAhead = kKind == LateKind::kStream ? 4 : 2;

  /// The first of this thread's pair of columns in tile t of 8 columns, from the first tile on (dealt_map).
  __device__ __forceinline__ static int column_of(int t) {
    constexpr int kRun = lane_columns(kKind);
    return t / (kRun / 2) * 4 * kRun + kRun * (threadIdx.x % 4) + t % (kRun / 2) * 2;
  }

  __device__ __forceinline__ static float quad_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
  }

  __device__ __forceinline__ int slots() const { return static_cast<int>(g_.k) / static_cast<int>(kSumColumns); }
  __device__ __forceinline__ const float2* sums_of(int tile_row, int h) const {
    return g_.x_sums + static_cast<int64_t>(min(tile_row + row_in_tile_ + 8 * h, static_cast<int>(g_.m) - 1)) * slots();
  }
  /// Two floats to shared memory, zeros beyond the matrix.
  __device__ __forceinline__ void copy_pair(uint32_t to, const float* from, int column) const {
    const bool there = column < static_cast<int>(g_.end.columns);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from + (there ? column : 0)), "r"(there ? 8 : 0) : "memory");
  }

  template <int kTiles>
  __device__ __forceinline__ void pack(const float* d) {
    if (kDivides && g_.x_sums)
      pack<kTiles, true>(d);
    else
      pack<kTiles, false>(d);
  }
  template <int kTiles, bool kScaled>
  __device__ __forceinline__ void pack(const float* d) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        words_[t][h] = kScaled ? pack2<T>(d[4 * t + 2 * h] * factor_[h], d[4 * t + 2 * h + 1] * factor_[h])
                               : pack2<T>(d[4 * t + 2 * h], d[4 * t + 2 * h + 1]);
  }

  /// 64 packed columns. Of the common ends only f32 results come here.
  __device__ __forceinline__ void end_now(int row, int packed, const float* d) const {
    const int lane_column = 2 * (static_cast<int>(threadIdx.x) % 4);
    if (EndKind(g_.end_kind) == EndKind::kFloat && !g_.gated && packed + 64 <= static_cast<int>(g_.end.columns))
      finish_float<8>(g_.end, g_.gelu, row, static_cast<int>(g_.m), packed + lane_column, d);
    else
      finish_apart<8>(g_.end, g_.gated, g_.gelu, row, g_.m, packed, lane_column, d);
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
      const auto* from = static_cast<const float*>(g_.end.residual.data) + row * g_.end.residual.stride + column + 4 * lane;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        residual_[piece % kAhead][i] = inside(piece) ? *reinterpret_cast<const float4*>(from + 16 * i) : make_float4(0, 0, 0, 0);
    } else if constexpr (kKind == LateKind::kStream) {
      const auto* from = static_cast<const T*>(g_.end.residual.data) + row * g_.end.residual.stride + column + 8 * lane;
      stream_[piece % kAhead] = inside(piece) ? load_wide(from) : make_uint4(0, 0, 0, 0);
    }
  }

  /// A thread's pair of constants, `column` from the group's first: bias, and layer scale in z and w.
  __device__ __forceinline__ float2 bias_of(int column) const {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(constants_ + 4 * column));
    return v;
  }
  __device__ __forceinline__ float4 bias_and_scale_of(int column) const {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(constants_ + 8 * column));
    return v;
  }

  __device__ __forceinline__ void store(int piece) {
    if (inside(piece)) store_whole(place<T>(piece), done_);
  }

  __device__ __forceinline__ void end_half(int piece, int t) {
    const float2 v = unpack2<T>(words_[piece / 2 * 4 + t][piece % 2]), bias = bias_of(column_of(piece / 2 * 4 + t));
    const float a = v.x + bias.x, b = v.y + bias.y;
    done_[t] = kKind == LateKind::kGelu ? pack2<T>(fast_gelu(a), fast_gelu(b)) : pack2<T>(a, b);
    if (t == 3) store(piece);
  }

  /// Four pairs of gate and up: tiles 0 to 7.
  __device__ __forceinline__ void end_gated(int h, int t) {
    const float2 gate_bias = bias_of(column_of(t)), up_bias = bias_of(128 + column_of(t));
    const float2 gate = unpack2<T>(words_[2 * t][h]), up = unpack2<T>(words_[2 * t + 1][h]);
    done_[t] = pack2<T>(fast_silu(gate.x + gate_bias.x) * (up.x + up_bias.x), fast_silu(gate.y + gate_bias.y) * (up.y + up_bias.y));
    if (t < 3) return;
    gather_pieces(done_, threadIdx.x % 4);
    store(h);
  }

  __device__ __forceinline__ void end_float(int piece, int t) {
    const float4 by = bias_and_scale_of(column_of(piece / 2 * 4 + t)), residual = residual_[piece % kAhead][t / 2];
    const float2 v = unpack2<T>(words_[piece / 2 * 4 + t][piece % 2]);
    const float2 added = t % 2 == 0 ? make_float2(residual.x, residual.y) : make_float2(residual.z, residual.w);
    done_[2 * (t % 2)] = __float_as_uint(fmaf(v.x + by.x, by.z, added.x));
    done_[2 * (t % 2) + 1] = __float_as_uint(fmaf(v.y + by.y, by.w, added.y));
    if (t % 2 == 1 && inside(piece)) store_whole(place<float>(piece) + 8 * (t - 1), done_);
    if (t == 3) prefetch(piece + kAhead);
  }

  /// The residual comes as the result goes, 16 bytes a lane.
  __device__ __forceinline__ void end_stream(int piece, int t) {
    const int h = piece % 2;
    if (t == 0) {
      const uint4 got = stream_[piece % kAhead];
      done_[0] = got.x, done_[1] = got.y, done_[2] = got.z, done_[3] = got.w;
      prefetch(piece + kAhead);
      if (piece < 2) half_[h] = make_float2(0, 0);
    }
    const float4 by = bias_and_scale_of(column_of(piece / 2 * 4 + t));
    const float2 v = unpack2<T>(words_[piece / 2 * 4 + t][h]), residual = unpack2<T>(done_[t]);
    done_[t] = pack2<T>(fmaf(v.x + by.x, by.z, residual.x), fmaf(v.y + by.y, by.w, residual.y));
    const float2 stored = unpack2<T>(done_[t]);
    half_[h].x += stored.x + stored.y;
    half_[h].y = fmaf(stored.x, stored.x, fmaf(stored.y, stored.y, half_[h].y));
    if (t < 3) return;
    store(piece);
    if (piece < 2) return;
    // Two pieces of a row are the columns that a pair of sums stands for.
    const float sum = quad_sum(half_[h].x), squares = quad_sum(half_[h].y);
    const int row = row_ + 8 * h, column = column_ + piece / 2 * 32;
    if (threadIdx.x % 4 == 0 && g_.out_sums && inside(piece))
      store_whole(reinterpret_cast<float*>(g_.out_sums + (row * static_cast<int>(g_.end.columns) + column) / static_cast<int>(kSumColumns)),
                  make_float2(sum, squares));
  }

  const GemmParams& g_;
  uint32_t held_, next_;  ///< constants of the tile that is ended, and of the one that is made: bias, with layer scale where there is one
  uint32_t constants_ = 0;  ///< of the group that is ended
  int own_, row_in_tile_;
  float2 x_sums_[2][kSlots];
  float factor_[2];
  void* out_ = nullptr;  ///< this lane's place in the result of the group's first piece
  uint32_t words_[32][2];
  float4 residual_[kAhead][2];
  uint4 stream_[kAhead];
  float2 half_[2];    ///< sums of two pieces of a row
  uint32_t done_[4];  ///< of the piece that is ended
  int row_ = 0, column_ = 0, end_column_ = 0;  ///< of the group that is ended, and where its tile ends
  int group_ = kGroups;  ///< that is ended next
};

#endif

}  // namespace tessera::cuda
