#include <algorithm>

#include "backends/cuda/fast.cuh"
#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/mma_parts.h"

namespace tessera::cuda {
namespace {

// 128 x 128 outputs a block, 64 x 64 a warp (4 warps), K in pieces of 32, three stages: 48 KB, the most that every device of
// this family gives without asking. Two blocks fit a multiprocessor, and each takes tile after tile: one's end runs beside the
// other's products, and the next tile's operands are on their way before a tile ends. Where tiles are few each is made in parts
// along K (mma_parts.h), whose sums a second kernel adds up and ends.
constexpr int kThreads = 128;
constexpr int kTile = kMmaTile;
constexpr int kDepth = kMmaDepth;
constexpr int kStages = 3;
constexpr int kBlocks = kMmaBlocks;
constexpr int kStageBytes = 2 * kTile * kDepth * 2;
constexpr int kRowsAtOnce = kThreads / 4;  ///< 4 pieces of 16 bytes a row
constexpr int kCopies = 2 * kTile / kRowsAtOnce;
static_assert(kStages * kStageBytes == shared_bytes::kMmaLinear);

/// Byte offset of a 16-byte piece in a tile of 64-byte rows. Two rows share a line of the 32 banks; the exclusive or
/// spreads the 8 rows that ldmatrix reads together over all of them.
__device__ __forceinline__ uint32_t piece(int row, int chunk) {
  return static_cast<uint32_t>(row * 64 + ((chunk ^ (row >> 1)) & 3) * 16);
}

struct MmaParams {
  GemmParams g;
  int parts = 1, steps = 0;  ///< MmaParts
  float* sums = nullptr;     ///< of several parts: [parts, m, packed_rows]
};

struct TilePlace {
  int64_t row, packed;
};

TESSERA_DEVICE int row_tiles(const GemmParams& p) {
  return static_cast<int>((p.m + kTile - 1) / kTile);
}
/// Of a part.
TESSERA_DEVICE int steps_of(const MmaParams& p, int part) {
  return min(p.steps, static_cast<int>((p.g.k + kDepth - 1) / kDepth) - part * p.steps);
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

/// A thread's share in bringing the operands of a block's parts of tiles, one behind the other without a break: one 16-byte column of
/// rows kRowsAtOnce apart, x's first, then the weight's. Rows beyond the last are copies of it: their sums go nowhere.
template <class T, bool kParts>
class Copies {
 public:
  __device__ __forceinline__ Copies(const MmaParams& p, uint32_t stages)
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
    job_ += static_cast<int>(gridDim.x);
    begin();
  }

 private:
  __device__ __forceinline__ void begin() {
    const GemmParams& g = p_.g;
    const int parts = kParts ? p_.parts : 1, part = kParts ? job_ % parts : 0;
    if (job_ >= row_tiles(g) * column_tiles(g) * parts) return;
    const TilePlace place = tile_place(g, kParts ? job_ / parts : job_);
    const int k = static_cast<int>(threadIdx.x % 4) * 8 + part * p_.steps * kDepth;
    left_ = static_cast<int>(g.k) - k;
    steps_ = steps_of(p_, part);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = static_cast<int>(threadIdx.x / 4) + i * kRowsAtOnce;
      const T* from = i * kRowsAtOnce < kTile
                          ? static_cast<const T*>(g.x) + min(place.row + row, g.m - 1) * g.x_stride
                          : static_cast<const T*>(g.weight) + min(place.packed + row - kTile, g.packed_rows - 1) * g.weight_stride;
      from_[i] = from + k;
    }
  }

  const MmaParams& p_;
  const T* from_[kCopies];
  int job_ = static_cast<int>(blockIdx.x), steps_ = 0;
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

/// The same of a part, to where the parts meet.
__device__ __forceinline__ void leave_warp(const MmaParams& p, int part, int64_t row, int64_t packed, const float (&sum)[4][8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float* const sums = p.sums + (part * p.g.m * p.g.packed_rows + packed + 2 * (lane % 4));
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t r = row + i * 16 + h * 8 + lane / 4;
      if (r >= p.g.m) continue;
#pragma unroll
      for (int j = 0; j < 8; ++j)
        *reinterpret_cast<float2*>(sums + r * p.g.packed_rows + 8 * j) = make_float2(sum[i][j][2 * h], sum[i][j][2 * h + 1]);
    }
}

/// A warp adds up all parts of 16 rows and 64 columns, in the lanes' places of a product, and ends them.
template <class T>
__global__ __launch_bounds__(kThreads) void finish_parts_kernel(const __grid_constant__ MmaParams p) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t packed = (static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + warp) * 64, row = static_cast<int64_t>(blockIdx.y) * 16 + lane / 4;
  let_next_start();
  wait_for_previous();
  if (packed >= p.g.packed_rows) return;
  float sum[8][4] = {};
  const float* from = p.sums + packed + 2 * (lane % 4);
#pragma unroll 4
  for (int part = 0; part < p.parts; ++part, from += p.g.m * p.g.packed_rows)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (row + 8 * h >= p.g.m) continue;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 v = __ldcg(reinterpret_cast<const float2*>(from + (row + 8 * h) * p.g.packed_rows + 8 * j));
        sum[j][2 * h] += v.x;
        sum[j][2 * h + 1] += v.y;
      }
    }
  finish_any<T, 8>(p.g.end, EndKind(p.g.end_kind), p.g.gated, p.g.gelu, row, p.g.m, packed, 2 * (lane % 4), &sum[0][0]);
}

template <class T, bool kParts>
__global__ __launch_bounds__(kThreads, kBlocks) void mma_linear_kernel(const __grid_constant__ MmaParams p) {
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t base = shared_address(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp / 2 * 64, warp_n = warp % 2 * 64;
  // Both halves of a stage, K and K + 16, differ in one bit of the place. One x4 of the weight: rows n .. n + 15 at both
  // halves of 16: registers 0, 1 are the first 8 rows, 2, 3 the next.
  const uint32_t a_place = base + piece(warp_m + lane % 16, lane / 16);
  const uint32_t b_place = base + piece(kTile + warp_n + lane / 16 * 8 + lane % 8, lane / 8 % 2);
  wait_for_previous();

  Copies<T, kParts> copies(p, base);
#pragma unroll 1
  for (uint32_t s = 0; s < kStages; ++s) {
    copies.copy(s * kStageBytes);
    copies.advance();
  }
  // While one 16 of K is multiplied, the fragments of the next arrive.
  float sum[4][8][4];
  Fragments halves[2];
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
  for (int i = 0; i < 4; ++i) load(halves[0], i, 0, 0);
  uint32_t stage = 0;
  const int parts = kParts ? p.parts : 1, jobs = row_tiles(p.g) * column_tiles(p.g) * parts;
#pragma unroll 1
  for (int job = static_cast<int>(blockIdx.x); job < jobs; job += static_cast<int>(gridDim.x)) {
    const int tile = kParts ? job / parts : job, part = kParts ? job % parts : 0, steps = steps_of(p, part);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) load(halves[1], i, stage, 32);
      multiply(halves[0], 0);
      multiply(halves[0], 1);
      copy_wait<kStages - 2>();
      __syncthreads();  // the next stage is here, and this one is read: a new one may take its place
      copies.copy(stage);
      stage = stage == (kStages - 1) * kStageBytes ? 0 : stage + kStageBytes;
      multiply(halves[0], 2);
      multiply(halves[0], 3);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load(halves[0], i, stage, 0);
        multiply(halves[1], i);
      }
      copies.advance();
    }
    if (job + static_cast<int>(gridDim.x) >= jobs) let_next_start();
    const TilePlace place = tile_place(p.g, tile);
    if (place.packed + warp_n >= p.g.packed_rows) continue;
    if constexpr (kParts)
      leave_warp(p, part, place.row + warp_m, place.packed + warp_n, sum);
    else
      finish_warp<T>(p.g, place.row + warp_m, place.packed + warp_n, sum);
  }
}

}  // namespace

void mma_linear(Stream& stream, DType dtype, const GemmParams& params) {
  CudaStream& s = cuda_stream(stream);
  const MmaParts parts = mma_parts(s.device.limits, params.m, params.packed_rows, params.k, static_cast<int64_t>(s.device.product_scratch.room()));
  MmaParams p{.g = params, .parts = static_cast<int>(parts.parts), .steps = static_cast<int>(parts.steps)};
  p.g.end_kind = static_cast<uint8_t>(end_kind(p.g.end, dtype));
  const auto at_once = static_cast<unsigned>(std::max<int64_t>(1, s.device.limits.multiprocessors)) * kBlocks;
  const unsigned jobs = plain::blocks_for(p.g.m, kTile) * plain::blocks_for(p.g.packed_rows, kTile) * static_cast<unsigned>(p.parts);
  const Grid grid{std::min(jobs, at_once)};
  dispatch_half(dtype, "linear", [&](auto zero) {
    using T = decltype(zero);
    if (p.parts == 1) return launch_fast(stream, "mma_linear", grid, kThreads, shared_bytes::kMmaLinear, mma_linear_kernel<T, false>, p);
    const size_t bytes = static_cast<size_t>(p.parts * p.g.m * p.g.packed_rows) * sizeof(float);
    p.sums = static_cast<float*>(s.device.product_scratch.get(bytes, "linear", s.capturing));
    launch_fast(stream, "mma_linear", grid, kThreads, shared_bytes::kMmaLinear, mma_linear_kernel<T, true>, p);
    launch_fast(stream, "finish_parts", Grid{plain::blocks_for(p.g.packed_rows, 64 * kThreads / 32), plain::blocks_for(p.g.m, 16)}, kThreads, 0,
                finish_parts_kernel<T>, p);
  });
}

}  // namespace tessera::cuda
