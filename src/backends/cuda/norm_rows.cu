#include "backends/cuda/fast.cuh"
#include "backends/cuda/rows.h"

namespace tessera::cuda {
namespace {

// The norm of many rows at the memory's speed: 8 columns a thread and piece, four pieces, so that a warp holds 1,024 columns, all
// loaded before the first is used. Rows may be folded together from patches on the way.
constexpr int kPieces = 4;
constexpr int kThreads = 128;  ///< at least; of rows of up to 1,024 columns a block takes four
constexpr int kMostWarps = 16;
constexpr int kWarpColumns = kPieces * 32 * 8;
static_assert(kMaxManyColumns == kMostWarps * kWarpColumns);

struct NormRowsParams {
  FinishParams f;
  int warps;  ///< of a row
};

/// The sum over a row's warps. `scratch`: a float for each of the block's warps. All threads of the block call it.
__device__ __forceinline__ float row_sum(float v, int warps, float* scratch) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
  if (warps == 1) return v;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[warp] = v;
  __syncthreads();
  float sum = 0;
  for (int w = warp / warps * warps, end = w + warps; w < end; ++w) sum += scratch[w];
  return sum;
}

/// The first of the four rows of x that a row is folded from; the others are its neighbours to the right and below.
__device__ __forceinline__ int64_t folded_row(const FinishParams& f, int row) {
  const int edge = f.fold_side / 2, tile = row / (edge * edge), within = row % (edge * edge);
  const int i = f.fold_transposed ? within % edge : within / edge, j = f.fold_transposed ? within / edge : within % edge;
  return static_cast<int64_t>(tile) * (1 + f.fold_side * f.fold_side) + 1 + 2 * i * f.fold_side + 2 * j;
}

template <class T, class X, bool kFolds>
__global__ __launch_bounds__(32 * kMostWarps) void norm_rows_kernel(NormRowsParams p) {
  __shared__ float scratch[kMostWarps];
  const FinishParams& f = p.f;
  const int threads = 32 * p.warps, own = static_cast<int>(threadIdx.x) % threads;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (static_cast<int>(blockDim.x) / threads) + static_cast<int>(threadIdx.x) / threads;
  let_next_start();
  wait_for_previous();
  const int64_t there = min(row, f.rows - 1);
  const auto* const x = static_cast<const X*>(f.x.data) + (kFolds ? folded_row(f, static_cast<int>(there)) : there) * f.x.stride;
  float v[kPieces][8] = {}, sum = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int column = (i * threads + own) * 8;
    if (column >= f.n) continue;
    const X* from = x + column;
    if constexpr (kFolds) {
      const int hidden = static_cast<int>(f.n / 4), part = column / hidden;  // 2 * row offset + column offset
      from += (part / 2 * f.fold_side + part % 2) * f.x.stride - part * hidden;
    }
    if constexpr (sizeof(X) == 4) {
      const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
      v[i][0] = a.x, v[i][1] = a.y, v[i][2] = a.z, v[i][3] = a.w, v[i][4] = b.x, v[i][5] = b.y, v[i][6] = b.z, v[i][7] = b.w;
    } else {
      unpack8<X>(*reinterpret_cast<const uint4*>(from), v[i]);
    }
  }
  if (f.layer) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
#pragma unroll
      for (float each : v[i]) sum += each;
    sum = row_sum(sum, p.warps, scratch);
  }
  const float mean = sum / static_cast<float>(f.n);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    if ((i * threads + own) * 8 >= f.n) continue;
#pragma unroll
    for (float& each : v[i]) each -= mean, squares = fmaf(each, each, squares);
  }
  const float inverse = 1.0f / sqrtf(row_sum(squares, p.warps, scratch) / static_cast<float>(f.n) + f.eps);
  if (row >= f.rows) return;
  T* const to = static_cast<T*>(f.norm_out.data) + row * f.norm_out.stride;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int column = (i * threads + own) * 8;
    if (column >= f.n) continue;
    float weight[8], bias[8] = {};
    load8(f.norm_weight + column, weight);
    if (f.norm_bias) load8(f.norm_bias + column, bias);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[i][j] = v[i][j] * inverse * weight[j] + bias[j];
    *reinterpret_cast<uint4*>(to + column) = pack8<T>(v[i]);
  }
}

}  // namespace

bool norm_rows_serves(const FinishParams& f) {
  const auto aligned = [](const float* v) { return reinterpret_cast<uintptr_t>(v) % 16 == 0; };
  return f.norm && !f.end.out.data && f.n % (f.fold_side ? 32 : 8) == 0 && f.n <= kMaxManyColumns && f.norm_out.dtype != DType::kF32 &&
         (f.x.dtype == DType::kF32 || f.x.dtype == f.norm_out.dtype) && vectors16(f.x) && vectors16(f.norm_out) && aligned(f.norm_weight) &&
         aligned(f.norm_bias);
}

void norm_rows(Stream& stream, const FinishParams& f) {
  const int warps = static_cast<int>((f.n + kWarpColumns - 1) / kWarpColumns);
  const int rows_each = std::max(1, kThreads / 32 / warps);
  const Grid grid{plain::blocks_for(f.rows, rows_each)};
  dispatch_half(f.norm_out.dtype, "norm", [&](auto zero) {
    using T = decltype(zero);
    auto kernel = f.x.dtype == DType::kF32 ? norm_rows_kernel<T, float, false> : norm_rows_kernel<T, T, false>;
    if (f.fold_side) kernel = f.x.dtype == DType::kF32 ? norm_rows_kernel<T, float, true> : norm_rows_kernel<T, T, true>;
    launch_fast(stream, "norm_rows", grid, 32 * warps * rows_each, 0, kernel, NormRowsParams{f, warps});
  });
}

}  // namespace tessera::cuda
