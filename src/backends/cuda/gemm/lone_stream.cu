#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/gemm/lone.cuh"

namespace tessera::cuda {
namespace {

// A product that ends with a 16-bit residual stream, in lone tiles of 64 x 128: a vision tile's projection. The two warpgroups of a block take
// turns at the steps of K, so that shared memory is read by products of 64 x 128, and add their sums at the end. Each of a cluster's two
// blocks brings half of the weight's rows for both.
constexpr int kSumsBytes = 64 * 128 * 4;
using Tile = LoneTile<kLoneStream, 6, 1, kSumsBytes, true>;
static_assert(Tile::kStages % 2 == 0, "a warpgroup has every second stage");

#ifdef TESSERA_WGMMA_HERE

using Ring = LoneRing<Tile>;

/// A warpgroup's every second step of K, of 64 rows by 128 columns.
template <class T>
__device__ __forceinline__ void multiply(const Ring& ring, int steps, int own, float* d) {
  const uint64_t x = operand(ring.base), weight = operand(ring.weight(0));
#pragma unroll
  for (int i = 0; i < Tile::kColumns / 2; ++i) d[i] = 0;  // of one step the second warpgroup has none
  uint32_t stage = static_cast<uint32_t>(own), phase = 0;
#pragma unroll 1
  for (int k = own; k < steps; k += 2) {
    barrier_wait(ring.full(stage), phase);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < Tile::kDepth / 16; ++j) {
      const uint64_t at = stage * (Tile::kStageBytes >> 4) + 2 * j;
      wgmma<T, Tile::kColumns>(d, x + at, weight + at, 1);
    }
    wgmma_commit();
    wgmma_wait<1>();
    release(ring, k - 2, steps, static_cast<int>(threadIdx.x) % 128);
    if ((stage += 2) >= Tile::kStages) stage -= Tile::kStages, phase ^= 1;
  }
  wgmma_wait<0>();
}

/// Each warpgroup ends 64 of the columns: it gives its sums of the others away and gets those of its own.
__device__ __forceinline__ void exchange(const Ring& ring, int own, const float* d, float (&sums)[32]) {
  const uint32_t thread = threadIdx.x % 128 * 16, mine = ring.end() + own * (kSumsBytes / 2) + thread, others = ring.end() + (1 - own) * (kSumsBytes / 2) + thread;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float away[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) away[j] = own == 0 ? d[32 + 4 * i + j] : d[4 * i + j];
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(others + i * 2048), "f"(away[0]), "f"(away[1]), "f"(away[2]), "f"(away[3]) : "memory");
  }
  named_barrier_sync(1, 256);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint4 got = load_shared(mine + i * 2048);
    const uint32_t words[4] = {got.x, got.y, got.z, got.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[4 * i + j] = (own == 0 ? d[4 * i + j] : d[32 + 4 * i + j]) + __uint_as_float(words[j]);
  }
}

template <class T>
__device__ __forceinline__ float2 add_to_stream(float2 sum, float2 bias, float2 scale, float2 residual) {
  const float2 v = unpack2<T>(pack2<T>(sum.x, sum.y));
  return make_float2(fmaf(v.x + bias.x, scale.x, residual.x), fmaf(v.y + bias.y, scale.y, residual.y));
}

/// A thread's share of a warpgroup's 64 columns: rows `row` and + 8, eight neighbouring columns of each 32, from `column` on. What its sums meet
/// is asked for before they are made.
template <class T>
class StreamEnd {
 public:
  __device__ __forceinline__ StreamEnd(const GemmParams& g, int row, int column) : g_(g), row_(row), column_(column) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const int at = column_ + 32 * i + 2 * t;
        const bool there = at < static_cast<int>(g_.end.columns);
        bias_[i][t] = g_.end.bias && there ? __ldg(reinterpret_cast<const float2*>(g_.end.bias + at)) : make_float2(0, 0);
        scale_[i][t] = g_.end.scale && there ? __ldg(reinterpret_cast<const float2*>(g_.end.scale + at)) : make_float2(1, 1);
      }
  }
  __device__ __forceinline__ void ask_for_residual() {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        residual_[h][i] = inside(h, i) ? *reinterpret_cast<const uint4*>(static_cast<const T*>(g_.end.residual.data) + place(g_.end.residual.stride, h, i))
                                       : make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void end(const float (&sums)[32]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float2 own = make_float2(0, 0);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t residual[4] = {residual_[h][i].x, residual_[h][i].y, residual_[h][i].z, residual_[h][i].w};
        uint32_t words[4];
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          const float* v = sums + 4 * (4 * i + t) + 2 * h;
          const float2 ended = add_to_stream<T>(make_float2(v[0], v[1]), bias_[i][t], scale_[i][t], unpack2<T>(residual[t]));
          words[t] = pack2<T>(ended.x, ended.y);
          const float2 stored = unpack2<T>(words[t]);
          own.x += stored.x + stored.y;
          own.y = fmaf(stored.x, stored.x, fmaf(stored.y, stored.y, own.y));
        }
        if (inside(h, i)) store_whole(static_cast<T*>(g_.end.out.data) + place(g_.end.out.stride, h, i), words);
      }
      if (!g_.out_sums) continue;
#pragma unroll
      for (int mask = 1; mask <= 2; mask *= 2) {
        own.x += __shfl_xor_sync(0xffffffffu, own.x, mask);
        own.y += __shfl_xor_sync(0xffffffffu, own.y, mask);
      }
      if (threadIdx.x % 4 == 0 && inside(h, 0))
        store_whole(reinterpret_cast<float*>(g_.out_sums + ((row_ + 8 * h) * static_cast<int>(g_.end.columns) + column_) / static_cast<int>(kSumColumns)), own);
    }
  }

 private:
  __device__ __forceinline__ bool inside(int h, int i) const {
    return row_ + 8 * h < static_cast<int>(g_.m) && column_ + 32 * i < static_cast<int>(g_.end.columns);
  }
  __device__ __forceinline__ int64_t place(int64_t stride, int h, int i) const { return (row_ + 8 * h) * stride + column_ + 32 * i; }

  const GemmParams& g_;
  int row_, column_;
  float2 bias_[2][4], scale_[2][4];
  uint4 residual_[2][2];
};

/// Eight blocks of rows make the 64 columns of a rider's row that a pair of sums stands for: the last to come adds their parts up.
__device__ __forceinline__ void meet_row_sums(const LoneParams& p, int column) {
  constexpr int kBlocks = static_cast<int>(kSumColumns) / Tile::kRiderColumns;
  const int lane = static_cast<int>(threadIdx.x) % 32, slot = column / static_cast<int>(kSumColumns), columns = static_cast<int>(p.g.end.columns);
  unsigned before = 0;
  if (lane == 0) {
    __threadfence();
    before = atomicAdd(p.arrived + slot, 1u);
    __threadfence();
  }
  if (__shfl_sync(0xffffffffu, before, 0) != kBlocks - 1) return;
  if (lane == 0) p.arrived[slot] = 0;
  if (lane >= p.riders_there || column >= columns) return;
  float2 sum = make_float2(0, 0);
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    const float2 part = __ldcg(p.parts + lane * (columns / Tile::kRiderColumns) + slot * kBlocks + i);
    sum = make_float2(sum.x + part.x, sum.y + part.y);
  }
  p.g.out_sums[(p.rider_row + lane) * (columns / static_cast<int>(kSumColumns)) + slot] = sum;
}

/// One of the riders' warps. Its columns are eight rows of the weight's tile as that was dealt.
template <class T>
__device__ __forceinline__ void ride(const LoneParams& p, const Ring& ring, int steps, int warp) {
  const GemmParams& g = p.g;
  const int lane = static_cast<int>(threadIdx.x) % 32, block = static_cast<int>(blockIdx.x), in_eight = lane / 4;
  const int column = first_column<Tile>() + block / 4 * 32 + in_eight / 2 * 8 + block % 4 * 2 + in_eight % 2;
  float whole[kMostRiders];
  RiderSums<T, Tile> sums(p.riders_there, warp);
  sums.add_up(ring, steps);
  sums.meet(ring, whole);
  if (warp > 0) return;
  const bool there = column < static_cast<int>(g.end.columns);
  const float bias = g.end.bias && there ? __ldg(g.end.bias + column) : 0.0f, scale = g.end.scale && there ? __ldg(g.end.scale + column) : 1.0f;
  const int own_eight = first_column<Tile>() + block * Tile::kRiderColumns;
#pragma unroll
  for (int r = 0; r < static_cast<int>(kMostRiders); ++r) {
    if (r >= p.riders_there) break;
    const int row = p.rider_row + r;
    const float residual = there ? static_cast<float>(static_cast<const T*>(g.end.residual.data)[row * g.end.residual.stride + column]) : 0.0f;
    const T stored = static_cast<T>(add_to_stream<T>(make_float2(whole[r], 0), make_float2(bias, 0), make_float2(scale, 0), make_float2(residual, 0)).x);
    if (there && lane % 4 == 0) static_cast<T*>(g.end.out.data)[row * g.end.out.stride + column] = stored;
    float sum = static_cast<float>(stored), squares = sum * sum;
#pragma unroll
    for (int mask = 4; mask <= 16; mask *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      squares += __shfl_xor_sync(0xffffffffu, squares, mask);
    }
    if (lane == 0 && there) __stcg(p.parts + (r * static_cast<int>(g.end.columns) + own_eight) / Tile::kRiderColumns, make_float2(sum, squares));
  }
  // Of the same 64 columns, though dealt otherwise: blocks 0 to 7 and 8 to 15.
  if (g.out_sums) meet_row_sums(p, own_eight);
}

template <class T>
__device__ __forceinline__ void make_columns(const LoneParams& p, const Ring& ring, int steps, int own) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  StreamEnd<T> ends(p.g, static_cast<int>(blockIdx.x) * Tile::kRows + thread / 32 * 16 + thread % 32 / 4, first_column<Tile>() + own * 64 + thread % 4 * 8);
  wait_for_previous();
  ends.ask_for_residual();
  float d[Tile::kColumns / 2], sums[32];
  multiply<T>(ring, steps, own, d);
  exchange(ring, own, d, sums);
  ends.end(sums);
}

#endif

template <class T>
__global__ __launch_bounds__(kLoneThreads, 1) void lone_stream_kernel(const __grid_constant__ LoneParams p) {
#ifdef TESSERA_WGMMA_HERE
  extern __shared__ unsigned char raw[];
  run_lone<Tile>(p, raw, [&](const Ring& ring, int steps, int own) { make_columns<T>(p, ring, steps, own); },
                 [&](const Ring& ring, int steps, int warp) { ride<T>(p, ring, steps, warp); });
#endif
}

}  // namespace

bool lone_stream(Stream& stream, DType dtype, const GemmParams& g) {
  CudaStream& s = cuda_stream(stream);
  const LoneTiles tiles = lone_tiles(kLoneStream, s.device.limits, g.m, g.packed_rows);
  if (tile_end(g) != TileEnd::kStream || g.k > kLoneStreamDepth || !tiles.at_once || tiles.share < kLeastShare) return false;
  LoneParams p = lone_params<Tile>(dtype, g, tiles);
  const int64_t parts = kMostRiders * tiles.columns * Tile::kCarriers;
  TESSERA_CHECK(tiles.columns * 2 <= kArrivals, "[linear] " + std::to_string(tiles.columns) + " blocks of columns are more than can meet");
  p.parts = static_cast<float2*>(s.device.product_scratch.get(static_cast<size_t>(parts) * sizeof(float2), "linear", s.capturing));
  p.arrived = s.device.arrived;
  dispatch_half(dtype, "linear", [&](auto zero) { launch_lone<Tile>(stream, "lone_stream", tiles, lone_stream_kernel<decltype(zero)>, p); });
  return true;
}

}  // namespace tessera::cuda
