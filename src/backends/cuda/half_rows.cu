#include "backends/cuda/column_sums.cuh"
#include "backends/cuda/fast.cuh"
#include "backends/cuda/rows.h"

namespace tessera::cuda {
namespace {

// The end of a product by the library where rows are 16-bit and no norm follows: 16 bytes a thread and row, what kinds of
// residual there are known when it is compiled, so that all loads stand before the first use.
constexpr int kThreads = 256;
constexpr int kRowsEach = 2;  ///< rows of a thread, for more loads in flight

enum class Beside : uint8_t { kNothing, kHalf, kFloat };  ///< the residual

struct HalfRowsParams {
  FinishParams f;
  int columns_each;  ///< threads along a row in a block
};

/// This lane's share of the sums of a row of x; 8 neighbouring lanes are of one row.
__device__ __forceinline__ float2 own_sums(const FinishParams& f, int64_t row) {
  const int slots = static_cast<int>(f.x_columns / kSumColumns);
  float2 own = make_float2(0, 0);
  for (int i = threadIdx.x % 8; i < slots; i += 8) {
    const float2 v = f.x_sums[row * slots + i];
    own = make_float2(own.x + v.x, own.y + v.y);
  }
  return own;
}
__device__ __forceinline__ float inverse_deviation(const FinishParams& f, float2 own) {
#pragma unroll
  for (int mask = 4; mask > 0; mask /= 2) {
    own.x += __shfl_xor_sync(0xffffffffu, own.x, mask);
    own.y += __shfl_xor_sync(0xffffffffu, own.y, mask);
  }
  const float each = 1.0f / static_cast<float>(f.x_columns), mean = own.x * each;
  return rsqrtf(fmaxf(own.y * each - mean * mean, 0.0f) + f.x_eps);
}

template <class T, Beside kBeside>
struct Residual8 {
  uint4 words;
  float floats[8];
  __device__ __forceinline__ void load(const plain::Elements& e, int64_t at) {
    if constexpr (kBeside == Beside::kHalf) words = *reinterpret_cast<const uint4*>(static_cast<const T*>(e.data) + at);
    if constexpr (kBeside == Beside::kFloat) load8(static_cast<const float*>(e.data) + at, floats);
  }
  __device__ __forceinline__ void get(float (&to)[8]) const {
    if constexpr (kBeside == Beside::kHalf) unpack8<T>(words, to);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if constexpr (kBeside != Beside::kHalf) to[i] = kBeside == Beside::kFloat ? floats[i] : 0.0f;
  }
};

template <class T, Beside kBeside, bool kGelu>
__global__ __launch_bounds__(kThreads) void half_rows_kernel(HalfRowsParams p) {
  const FinishParams& f = p.f;
  const int within = static_cast<int>(threadIdx.x) % p.columns_each, rows_at_once = static_cast<int>(blockDim.x) / p.columns_each;
  const int column = (static_cast<int>(blockIdx.y) * p.columns_each + within) * 8;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * (rows_at_once * kRowsEach) + static_cast<int>(threadIdx.x) / p.columns_each;
  let_next_start();
  float bias[8] = {}, scale[8];
  const bool wanted = column < f.n && static_cast<int>(threadIdx.x) < rows_at_once * p.columns_each;
  if (f.end.bias && wanted) load8(f.end.bias + column, bias);
  if (f.end.scale && wanted) load8(f.end.scale + column, scale);
  wait_for_previous();
  uint4 raw[kRowsEach];
  Residual8<T, kBeside> residual[kRowsEach];
  float2 sums[kRowsEach];
#pragma unroll
  for (int i = 0; i < kRowsEach; ++i) {
    const int64_t row = row0 + i * rows_at_once;
    if (f.x_sums) sums[i] = own_sums(f, min(row, f.rows - 1));
    if (row >= f.rows || !wanted) continue;
    raw[i] = *reinterpret_cast<const uint4*>(static_cast<const T*>(f.x.data) + row * f.x.stride + column);
    residual[i].load(f.end.residual, row * f.end.residual.stride + column);
  }
#pragma unroll
  for (int i = 0; i < kRowsEach; ++i) {
    const int64_t row = row0 + i * rows_at_once;
    const bool inside = row < f.rows && wanted;
    const float factor = f.x_sums ? inverse_deviation(f, sums[i]) : 1.0f;
    float v[8], beside[8];
    unpack8<T>(raw[i], v);
    residual[i].get(beside);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      v[j] = fmaf(v[j], factor, bias[j]);
      if constexpr (kGelu) v[j] = fast_gelu(v[j]);
      v[j] = f.end.scale ? fmaf(v[j], scale[j], beside[j]) : v[j] + beside[j];
    }
    const uint4 words = pack8<T>(v);
    if (inside) *reinterpret_cast<uint4*>(static_cast<T*>(f.end.out.data) + row * f.end.out.stride + column) = words;
    if (!f.out_sums) continue;
    const float2 own = column_sums<T>(words);
    if (inside && threadIdx.x % 8 == 0) f.out_sums[(row * f.n + column) / kSumColumns] = own;
  }
}

template <class T, Beside kBeside>
void launch_rows(Stream& stream, const Grid& grid, int threads, const HalfRowsParams& p) {
  launch_fast(stream, "half_rows", grid, threads, 0, p.f.gelu ? half_rows_kernel<T, kBeside, true> : half_rows_kernel<T, kBeside, false>, p);
}

}  // namespace

bool half_rows_serves(const FinishParams& f) {
  const EpilogueParams& e = f.end;
  const DType dtype = e.out.dtype;
  if (!e.out.data || e.segment || f.norm || dtype == DType::kF32 || f.x.dtype != dtype || f.n % kSumColumns != 0) return false;
  if (e.residual.data && (!vectors16(e.residual) || (e.residual.dtype != dtype && e.residual.dtype != DType::kF32))) return false;
  const auto aligned = [](const float* v) { return reinterpret_cast<uintptr_t>(v) % 16 == 0; };
  return vectors16(e.out) && vectors16(f.x) && aligned(e.bias) && aligned(e.scale);
}

void half_rows(Stream& stream, const FinishParams& f) {
  const int pieces = static_cast<int>(f.n / 8), along = (pieces + kThreads - 1) / kThreads;
  const HalfRowsParams p{.f = f, .columns_each = ((pieces + along - 1) / along + 7) / 8 * 8};
  const int rows_at_once = kThreads / p.columns_each;
  const Grid grid{plain::blocks_for(f.rows, static_cast<int64_t>(rows_at_once) * kRowsEach), static_cast<unsigned>(along)};
  dispatch_half(f.x.dtype, "half_rows", [&](auto zero) {
    using T = decltype(zero);
    const int threads = (rows_at_once * p.columns_each + 31) / 32 * 32;
    if (!f.end.residual.data)
      launch_rows<T, Beside::kNothing>(stream, grid, threads, p);
    else if (f.end.residual.dtype == DType::kF32)
      launch_rows<T, Beside::kFloat>(stream, grid, threads, p);
    else
      launch_rows<T, Beside::kHalf>(stream, grid, threads, p);
  });
}

}  // namespace tessera::cuda
