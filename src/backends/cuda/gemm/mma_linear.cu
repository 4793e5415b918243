#include <algorithm>

#include "backends/cuda/fast.cuh"
#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// 128 x 128 outputs a block, 64 x 64 a warp (4 warps), K in pieces of 32, three stages: 48 KB, the most that every device of
// this family gives without asking. Two blocks fit a multiprocessor, and each takes tile after tile: one's end runs beside the
// other's products, and the next tile's operands are on their way before a tile ends.
constexpr int kThreads = 128;
constexpr int kTile = 128;
constexpr int kDepth = 32;
constexpr int kStages = 3;
constexpr int kBlocks = 2;  ///< a multiprocessor
constexpr int kStageBytes = 2 * kTile * kDepth * 2;
constexpr int kRowsAtOnce = kThreads / 4;  ///< 4 pieces of 16 bytes a row
constexpr int kCopies = 2 * kTile / kRowsAtOnce;
static_assert(kStages * kStageBytes == shared_bytes::kMmaLinear);

/// Byte offset of a 16-byte piece in a tile of 64-byte rows. Two rows share a line of the 32 banks; the exclusive or
/// spreads the 8 rows that ldmatrix reads together over all of them.
__device__ __forceinline__ uint32_t piece(int row, int chunk) {
  return static_cast<uint32_t>(row * 64 + ((chunk ^ (row >> 1)) & 3) * 16);
}

struct TilePlace {
  int64_t row, packed;
};

TESSERA_DEVICE int row_tiles(const GemmParams& p) {
  return static_cast<int>((p.m + kTile - 1) / kTile);
}
TESSERA_DEVICE int steps_of(const GemmParams& p) {
  return static_cast<int>((p.k + kDepth - 1) / kDepth);
}
TESSERA_DEVICE int column_tiles(const GemmParams& p) {
  return static_cast<int>((p.packed_rows + kTile - 1) / kTile);
}

/// Blocks that run together should share operands in L2 both ways, and a band of x should stay there while the weight
/// passes: bands of at most 32 tiles of rows, in each of which rows vary fastest.
__device__ __forceinline__ TilePlace tile_place(const GemmParams& p, int index) {
  const int tiles = row_tiles(p), columns = column_tiles(p), bands = (tiles + 31) / 32, high = (tiles + bands - 1) / bands;
  const int band = index / (high * columns), within = index - band * high * columns;
  const int rows = min(high, tiles - band * high);
  return {static_cast<int64_t>(band * high + within % rows) * kTile, static_cast<int64_t>(within / rows) * kTile};
}

/// A thread's part in bringing the operands of a block's tiles, one tile behind the other without a break: one 16-byte column of
/// rows kRowsAtOnce apart, x's first, then the weight's. Rows beyond the last are copies of it: their sums go nowhere.
template <class T>
class Copies {
 public:
  __device__ __forceinline__ Copies(const GemmParams& p, uint32_t stages)
      : p_(p), to_(stages + piece(static_cast<int>(threadIdx.x / 4), static_cast<int>(threadIdx.x % 4))) {
    begin();
  }
  /// The next piece of K to a stage; zeros beyond the end of K and after the last tile.
  __device__ __forceinline__ void copy(uint32_t stage) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i)
      copy_async(to_ + stage + static_cast<uint32_t>(i * kRowsAtOnce * 64), from_[i], left_ > 0);
    copy_commit();
  }
  /// Apart from the copies, whose addresses are not free at once.
  __device__ __forceinline__ void advance() {
    left_ -= kDepth;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) from_[i] += kDepth;
    if (--steps_ > 0) return;
    tile_ += static_cast<int>(gridDim.x);
    begin();
  }

 private:
  __device__ __forceinline__ void begin() {
    if (tile_ >= row_tiles(p_) * column_tiles(p_)) return;
    const TilePlace place = tile_place(p_, tile_);
    left_ = static_cast<int>(p_.k) - static_cast<int>(threadIdx.x % 4) * 8;
    steps_ = steps_of(p_);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = static_cast<int>(threadIdx.x / 4) + i * kRowsAtOnce;
      const T* from = i * kRowsAtOnce < kTile
                          ? static_cast<const T*>(p_.x) + min(place.row + row, p_.m - 1) * p_.x_stride
                          : static_cast<const T*>(p_.weight) + min(place.packed + row - kTile, p_.packed_rows - 1) * p_.weight_stride;
      from_[i] = from + threadIdx.x % 4 * 8;
    }
  }

  const GemmParams& p_;
  const T* from_[kCopies];
  int tile_ = static_cast<int>(blockIdx.x), steps_ = 0;
  int left_ = 0;  ///< of K, from the thread's column on
  uint32_t to_;
};

/// A warp's operands for 16 of K.
struct Fragments {
  uint32_t a[4][4], b[4][4];
};

/// A warp's sums to their places, 16 rows at a time. One copy of the end's code, which is long and runs once a tile: fetching
/// four would take longer than moving the sums.
template <class T>
__device__ __forceinline__ void finish_warp(const GemmParams& p, int64_t row, int64_t packed, float (&sum)[4][8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    finish_any<T, 8>(p.end, EndKind(p.end_kind), p.gated, p.gelu, row + i * 16 + lane / 4, p.m, packed, 2 * (lane % 4), &sum[0][0][0]);
#pragma unroll
    for (int to = 0; to < 3; ++to)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[to][j][e] = sum[to + 1][j][e];
  }
}

template <class T>
__global__ __launch_bounds__(kThreads, kBlocks) void mma_linear_kernel(const __grid_constant__ GemmParams p) {
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t base = shared_address(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp / 2 * 64, warp_n = warp % 2 * 64;
  // Both halves of a stage, K and K + 16, differ in one bit of the place. One x4 of the weight: rows n .. n + 15 at both
  // halves of 16: registers 0, 1 are the first 8 rows, 2, 3 the next.
  const uint32_t a_place = base + piece(warp_m + lane % 16, lane / 16);
  const uint32_t b_place = base + piece(kTile + warp_n + lane / 16 * 8 + lane % 8, lane / 8 % 2);
  wait_for_previous();

  Copies<T> copies(p, base);
#pragma unroll 1
  for (uint32_t s = 0; s < kStages; ++s) {
    copies.copy(s * kStageBytes);
    copies.advance();
  }
  // While one 16 of K is multiplied, the fragments of the next arrive.
  float sum[4][8][4];
  Fragments parts[2];
  auto load = [&](Fragments& to, int i, uint32_t stage, uint32_t half) {
    load_matrix_x4(to.a[i], (a_place ^ half) + stage + i * 1024);
    load_matrix_x4(to.b[i], (b_place ^ half) + stage + i * 1024);
  };
  auto multiply = [&](const Fragments& part, int i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) mma<T>(sum[i][j], part.a[i], part.b[j / 2][j % 2 * 2], part.b[j / 2][j % 2 * 2 + 1]);
  };
  copy_wait<kStages - 1>();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) load(parts[0], i, 0, 0);
  uint32_t stage = 0;
  const int steps = steps_of(p), tiles = row_tiles(p) * column_tiles(p);
#pragma unroll 1
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) load(parts[1], i, stage, 32);
      multiply(parts[0], 0);
      multiply(parts[0], 1);
      copy_wait<kStages - 2>();
      __syncthreads();  // the next stage is here, and this one is read: a new one may take its place
      copies.copy(stage);
      stage = stage == (kStages - 1) * kStageBytes ? 0 : stage + kStageBytes;
      multiply(parts[0], 2);
      multiply(parts[0], 3);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load(parts[0], i, stage, 0);
        multiply(parts[1], i);
      }
      copies.advance();
    }
    if (tile + static_cast<int>(gridDim.x) >= tiles) let_next_start();
    const TilePlace place = tile_place(p, tile);
    if (place.packed + warp_n < p.packed_rows) finish_warp<T>(p, place.row + warp_m, place.packed + warp_n, sum);
  }
}

}  // namespace

void mma_linear(Stream& stream, DType dtype, const GemmParams& params) {
  GemmParams p = params;
  p.end_kind = static_cast<uint8_t>(end_kind(p.end, dtype));
  const auto at_once = static_cast<unsigned>(std::max<int64_t>(1, cuda_stream(stream).device.limits.multiprocessors)) * kBlocks;
  const Grid grid{std::min(plain::blocks_for(p.m, kTile) * plain::blocks_for(p.packed_rows, kTile), at_once)};
  dispatch_half(dtype, "linear", [&](auto zero) {
    launch_fast(stream, "mma_linear", grid, kThreads, shared_bytes::kMmaLinear, mma_linear_kernel<decltype(zero)>, p);
  });
}

}  // namespace tessera::cuda
