#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/gemm/lone.cuh"

namespace tessera::cuda {
namespace {

// A product with at most bias, GELU and the division by x's deviation, in lone tiles of 128 x 256: a vision tile's q | k | v and fc1. Each of a
// cluster's two blocks brings half of the weight's rows for both, as in wgmma_linear.cu. A warpgroup makes 64 rows.
using Tile = LoneTile<kLoneLinear, 4, 2, 0, false>;

#ifdef TESSERA_WGMMA_HERE

using Ring = LoneRing<Tile>;

/// A warpgroup's sums, 64 rows by 256 columns. The last products are left running.
template <class T>
__device__ __forceinline__ void multiply(const Ring& ring, int steps, int own, float* d) {
  const uint64_t x = operand(ring.base) + own * (Tile::kXBytes / 2 >> 4), weight = operand(ring.weight(0));
  uint32_t stage = 0, phase = 0;
#pragma unroll 1
  for (int k = 0; k < steps; ++k) {
    barrier_wait(ring.full(stage), phase);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < Tile::kDepth / 16; ++j) {
      const uint64_t at = stage * (Tile::kStageBytes >> 4) + 2 * j;
      wgmma<T, Tile::kColumns>(d, x + at, weight + at, k != 0 || j != 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    release(ring, k - 1, steps, static_cast<int>(threadIdx.x) % 128);
    if (++stage == Tile::kStages) stage = 0, phase ^= 1;
  }
}

/// 1 / deviation of a row of x: its sums are asked for before the product and added up behind it. Each of kLanes neighbouring lanes reads a part.
template <int kLanes>
class RowFactor {
 public:
  __device__ __forceinline__ RowFactor(const GemmParams& g, int row) : g_(g) {
    if (!g.x_sums) return;
    slots_ = static_cast<int>(g.k) / static_cast<int>(kSumColumns);
    from_ = g.x_sums + static_cast<int64_t>(min(row, static_cast<int>(g.m) - 1)) * slots_;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int slot = static_cast<int>(threadIdx.x) % kLanes + i * kLanes;
      ahead_[i] = slot < slots_ ? from_[slot] : make_float2(0, 0);
    }
  }
  __device__ __forceinline__ float get() const {
    if (!g_.x_sums) return 1.0f;
    float sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) sum += ahead_[i].x, squares += ahead_[i].y;
#pragma unroll 1
    for (int slot = static_cast<int>(threadIdx.x) % kLanes + kAhead * kLanes; slot < slots_; slot += kLanes)
      sum += from_[slot].x, squares += from_[slot].y;
#pragma unroll
    for (int mask = 1; mask < kLanes; mask *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      squares += __shfl_xor_sync(0xffffffffu, squares, mask);
    }
    return one_by_deviation(g_, sum, squares);
  }

 private:
  static constexpr int kAhead = kLanes < 16 ? 16 / kLanes : 1;  ///< all of a row of 1024 columns
  const GemmParams& g_;
  const float2* from_ = nullptr;
  int slots_ = 0;
  float2 ahead_[kAhead];
};

/// A lane's eight columns, from `column` on.
__device__ __forceinline__ void load_bias(const GemmParams& g, int column, float (&bias)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 v = g.end.bias && column < static_cast<int>(g.end.columns)
                         ? __ldg(reinterpret_cast<const float2*>(g.end.bias + column + 2 * i)) : make_float2(0, 0);
    bias[2 * i] = v.x, bias[2 * i + 1] = v.y;
  }
}

__device__ __forceinline__ void store_matrix_x4(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

/// The sums, rounded to 16 bits as the reference rounds its products, go through the warpgroup's own rows of x in the ring (four stages of 64
/// columns, swizzled): so a warp ends a row of 256 columns at a time, in a short loop whose lanes keep their biases. Requires: all
/// warps of the warpgroup have read these rows.
template <class T, bool kGelu>
__device__ __forceinline__ void end(const GemmParams& g, const Ring& ring, int own, const float (&factor)[2], const float (&bias)[8], const float* d) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const uint32_t rows = ring.base + own * (Tile::kXBytes / 2) + warp * 16 * 128;
  const uint32_t to = rows + lane % 16 * 128 + (lane / 16 ^ lane % 8) * 16;
#pragma unroll
  for (int t = 0; t < Tile::kColumns / 8; t += 2) {
    const float* v = d + 4 * t;
    store_matrix_x4((to + t / 8 * Tile::kStageBytes) ^ (t % 8 * 16), pack2<T>(v[0] * factor[0], v[1] * factor[0]), pack2<T>(v[2] * factor[1], v[3] * factor[1]),
                    pack2<T>(v[4] * factor[0], v[5] * factor[0]), pack2<T>(v[6] * factor[1], v[7] * factor[1]));
  }
  __syncwarp();
  const int row = static_cast<int>(blockIdx.x) * Tile::kRows + own * 64 + warp * 16, column = first_column<Tile>() + 8 * lane;
  if (column >= static_cast<int>(g.end.columns)) return;
  T* out = static_cast<T*>(g.end.out.data) + row * g.end.out.stride + column;
  const uint32_t from = rows + lane / 8 * Tile::kStageBytes;
  const int count = min(16, static_cast<int>(g.m) - row);
#pragma unroll 4
  for (int r = 0; r < count; ++r) {
    float v[8];
    unpack8<T>(load_shared(from + r * 128 + (lane % 8 ^ r % 8) * 16), v);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[i] += bias[i];
      if (kGelu) v[i] = fast_gelu(v[i]);
    }
    *reinterpret_cast<uint4*>(out + r * g.end.out.stride) = pack8<T>(v);
  }
}

/// One of the riders' warps.
template <class T, bool kGelu>
__device__ __forceinline__ void ride(const LoneParams& p, const Ring& ring, int steps, int warp) {
  const GemmParams& g = p.g;
  const int column = first_column<Tile>() + static_cast<int>(blockIdx.x) * Tile::kRiderColumns + static_cast<int>(threadIdx.x) % 32;
  float whole[kMostRiders];
  RiderSums<T, Tile> sums(p.riders_there, warp);
  sums.add_up(ring, steps);
  sums.meet(ring, whole);
  if (warp > 0) return;
#pragma unroll
  for (int r = 0; r < static_cast<int>(kMostRiders); ++r) {
    if (r >= p.riders_there) break;
    const float factor = RowFactor<32>(g, p.rider_row + r).get();
    if (column >= static_cast<int>(g.end.columns)) continue;
    float v = static_cast<float>(static_cast<T>(whole[r] * factor)) + (g.end.bias ? __ldg(g.end.bias + column) : 0.0f);
    if (kGelu) v = fast_gelu(v);
    static_cast<T*>(g.end.out.data)[(p.rider_row + r) * g.end.out.stride + column] = static_cast<T>(v);
  }
}

template <class T, bool kGelu>
__device__ __forceinline__ void make_rows(const LoneParams& p, const Ring& ring, int steps, int own) {
  const int row = static_cast<int>(blockIdx.x) * Tile::kRows + static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  float bias[8], d[Tile::kColumns / 2];
  load_bias(p.g, first_column<Tile>() + static_cast<int>(threadIdx.x) % 32 * 8, bias);
  wait_for_previous();
  const RowFactor<4> upper(p.g, row), lower(p.g, row + 8);
  multiply<T>(ring, steps, own, d);
  const float factor[2] = {upper.get(), lower.get()};
  wgmma_wait<0>();
  named_barrier_sync(1 + own, 128);
  end<T, kGelu>(p.g, ring, own, factor, bias, d);
}

#endif

template <class T, bool kGelu>
__global__ __launch_bounds__(kLoneThreads, 1) void lone_linear_kernel(const __grid_constant__ LoneParams p) {
#ifdef TESSERA_WGMMA_HERE
  extern __shared__ unsigned char raw[];
  run_lone<Tile>(p, raw, [&](const Ring& ring, int steps, int own) { make_rows<T, kGelu>(p, ring, steps, own); },
                 [&](const Ring& ring, int steps, int warp) { ride<T, kGelu>(p, ring, steps, warp); });
#endif
}

}  // namespace

bool lone_linear(Stream& stream, DType dtype, const GemmParams& g) {
  const TileEnd kind = tile_end(g);
  const LoneTiles tiles = lone_tiles(kLoneLinear, cuda_stream(stream).device.limits, g.m, g.packed_rows);
  if ((kind != TileEnd::kHalf && kind != TileEnd::kGelu) || !tiles.at_once || tiles.share < kLeastShare) return false;
  dispatch_half(dtype, "linear", [&](auto zero) {
    using T = decltype(zero);
    launch_lone<Tile>(stream, "lone_linear", tiles, kind == TileEnd::kGelu ? lone_linear_kernel<T, true> : lone_linear_kernel<T, false>,
                      lone_params<Tile>(dtype, g, tiles));
  });
  return true;
}

}  // namespace tessera::cuda
