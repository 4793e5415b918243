#include "backends/cuda/rows.h"

#include <algorithm>
#include <type_traits>

#include "backends/cuda/row_vectors.cuh"

namespace tessera::cuda {
namespace {

/// What a load gives back of v after it was stored in `dtype`.
__device__ __forceinline__ float4 stored4(DType dtype, float4 v) {
  if (dtype == DType::kF32) return v;
  const bool bf = dtype == DType::kBF16;
  const float2 a = bf ? unpack2<__nv_bfloat16>(pack2<__nv_bfloat16>(v.x, v.y)) : unpack2<__half>(pack2<__half>(v.x, v.y));
  const float2 b = bf ? unpack2<__nv_bfloat16>(pack2<__nv_bfloat16>(v.z, v.w)) : unpack2<__half>(pack2<__half>(v.z, v.w));
  return make_float4(a.x, a.y, b.x, b.y);
}

__device__ __forceinline__ float4 vector_at(const float* v, int64_t column) {
  return *reinterpret_cast<const float4*>(v + column);
}

__device__ __forceinline__ float4 residual4(const FinishParams& p, int64_t row, int64_t column) {
  const EpilogueParams& e = p.end;
  return e.residual.data ? load4(e.residual, e.residual_row(row), column) : make_float4(0, 0, 0, 0);
}

__device__ __forceinline__ float4 finish4(const FinishParams& p, int64_t row, int64_t column, float4 v, float4 r) {
  const EpilogueParams& e = p.end;
  if (e.bias) {
    const float4 b = vector_at(e.bias, column);
    v = make_float4(v.x + b.x, v.y + b.y, v.z + b.z, v.w + b.w);
  }
  if (p.gelu)
    v = p.x.dtype == DType::kF32 ? make_float4(gelu(v.x), gelu(v.y), gelu(v.z), gelu(v.w))
                                 : make_float4(fast_gelu(v.x), fast_gelu(v.y), fast_gelu(v.z), fast_gelu(v.w));
  if (e.scale) {
    const float4 s = vector_at(e.scale, column);
    v = make_float4(v.x * s.x, v.y * s.y, v.z * s.z, v.w * s.w);
  }
  v = make_float4(v.x + r.x, v.y + r.y, v.z + r.z, v.w + r.w);
  store4(e.out, e.out_row(row), column, v);
  return v;
}

/// 1 / deviation of a row of x, by every warp for itself.
__device__ __forceinline__ float inverse_deviation(const FinishParams& p, int64_t row) {
  const int slots = static_cast<int>(p.x_columns / kSumColumns);
  float sum = 0, squares = 0;
  for (int i = threadIdx.x % 32; i < slots; i += 32) {
    const float2 v = p.x_sums[row * slots + i];
    sum += v.x;
    squares += v.y;
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    squares += __shfl_xor_sync(0xffffffffu, squares, mask);
  }
  const auto n = static_cast<float>(p.x_columns);
  return rsqrtf(fmaxf(squares / n - sum / n * (sum / n), 0.0f) + p.x_eps);
}

/// Sums of four finished columns, as they are stored, to the pair of their 64: 16 neighbouring threads hold those.
__device__ __forceinline__ void add_up(const FinishParams& p, int64_t row, int64_t column, float4 v) {
  v = stored4(p.end.out.dtype, v);
  float sum = (v.x + v.y) + (v.z + v.w), squares = (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
#pragma unroll
  for (int mask = 8; mask > 0; mask /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    squares += __shfl_xor_sync(0xffffffffu, squares, mask);
  }
  if (threadIdx.x % 16 == 0 && column < p.n) p.out_sums[(row * p.n + column) / kSumColumns] = make_float2(sum, squares);
}

constexpr int kMaxThreads = 256;
constexpr int64_t kFewRows = 64;  ///< the library's products of more do not overlap with their norms

__device__ __forceinline__ float reduce_sum(float v, float* scratch) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
  const int warps = static_cast<int>(blockDim.x) / 32;
  if (warps == 1) return v;
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0;
  for (int w = 0; w < warps; ++w) sum += scratch[w];
  return sum;
}

/// What a row is normed with: its mean (0 without one) and 1 / deviation.
struct RowNorm {
  float mean, inverse;
};

/// Of a row that the block's threads hold four columns at a time; `sum` is of a thread's own.
template <int kVectors>
__device__ __forceinline__ RowNorm norm_of(const FinishParams& p, const float4 (&v)[kVectors], float sum, float* scratch) {
  const float n = static_cast<float>(p.n);
  const float mean = p.layer ? reduce_sum(sum, scratch) / n : 0.0f;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if ((static_cast<int64_t>(i) * static_cast<int>(blockDim.x) + threadIdx.x) * 4 >= p.n) continue;
    const float4 d = make_float4(v[i].x - mean, v[i].y - mean, v[i].z - mean, v[i].w - mean);
    squares += (d.x * d.x + d.y * d.y) + (d.z * d.z + d.w * d.w);
  }
  return {mean, 1.0f / sqrtf(reduce_sum(squares, scratch) / n + p.eps)};
}

__device__ __forceinline__ void store_normed(const FinishParams& p, int64_t row, int64_t column, const RowNorm& r, float4 v,
                                             float4 w) {
  const float4 b = p.norm_bias ? vector_at(p.norm_bias, column) : make_float4(0, 0, 0, 0);
  store4(p.norm_out, row, column,
         make_float4((v.x - r.mean) * r.inverse * w.x + b.x, (v.y - r.mean) * r.inverse * w.y + b.y,
                     (v.z - r.mean) * r.inverse * w.z + b.z, (v.w - r.mean) * r.inverse * w.w + b.w));
}

/// One block a row, which stays in registers between the two passes of the norm: kVectors groups of 4 a thread.
/// kEnds: the rows are a product's sums, whose end comes first.
template <int kVectors, bool kEnds>
__global__ __launch_bounds__(kMaxThreads) void finish_kernel(FinishParams p) {
  __shared__ float scratch[kMaxThreads / 32];
  // Narrow rows have a warp each and no barrier; blockDim.y counts the rows of a block.
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int threads = static_cast<int>(blockDim.x);
  let_next_start();
  wait_for_previous();
  if (row >= p.rows) return;
  // All that is read before anything is written: a load may not pass a store that could alias it.
  float4 v[kVectors], residual[kEnds ? kVectors : 1];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int64_t column = (static_cast<int64_t>(i) * threads + threadIdx.x) * 4;
    const bool inside = column < p.n;
    v[i] = inside ? load4(p.x, row, column) : make_float4(0, 0, 0, 0);
    if constexpr (kEnds) residual[i] = inside ? residual4(p, row, column) : make_float4(0, 0, 0, 0);
  }
  float sum = 0;
  float factor = 1.0f;
  if constexpr (kEnds)
    if (p.x_sums) factor = inverse_deviation(p, row);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int64_t column = (static_cast<int64_t>(i) * threads + threadIdx.x) * 4;
    if constexpr (kEnds) {
      v[i] = make_float4(v[i].x * factor, v[i].y * factor, v[i].z * factor, v[i].w * factor);
      if (column < p.n) v[i] = finish4(p, row, column, v[i], residual[i]);
      if (p.out_sums) add_up(p, row, column, v[i]);
    }
    sum += (v[i].x + v[i].y) + (v[i].z + v[i].w);
  }
  if (!p.norm) return;
  const RowNorm norm = norm_of(p, v, sum, scratch);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int64_t column = (static_cast<int64_t>(i) * threads + threadIdx.x) * 4;
    if (column < p.n) store_normed(p, row, column, norm, v[i], vector_at(p.norm_weight, column));
  }
}

/// A norm alone of the few rows of a decode step, between products that fill their rings: the norm's weight comes before the
/// wait (many rows want the registers), and what follows the wait is rehearsed.
template <int kVectors>
__global__ __launch_bounds__(kMaxThreads) void norm_few_kernel(FinishParams p) {
  __shared__ float scratch[kMaxThreads / 32];
  const int64_t row = blockIdx.x;
  const int threads = static_cast<int>(blockDim.x);
  let_next_start();
  float4 weight[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int64_t column = (static_cast<int64_t>(i) * threads + threadIdx.x) * 4;
    weight[i] = column < p.n ? vector_at(p.norm_weight, column) : make_float4(0, 0, 0, 0);
  }
#pragma unroll 1
  for (int real = kRehearsal; real < 2; ++real) {
    if (real) wait_for_previous();
    float4 v[kVectors];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int64_t column = (static_cast<int64_t>(i) * threads + threadIdx.x) * 4;
      v[i] = real && column < p.n ? load4(p.x, row, column) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) sum += (v[i].x + v[i].y) + (v[i].z + v[i].w);
    const RowNorm norm = norm_of(p, v, sum, scratch);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int64_t column = (static_cast<int64_t>(i) * threads + threadIdx.x) * 4;
      if (real && column < p.n) store_normed(p, row, column, norm, v[i], weight[i]);
    }
  }
}

/// Without a norm rows may be of any width: threads stride over them.
__global__ __launch_bounds__(kMaxThreads) void finish_wide_kernel(FinishParams p) {
  let_next_start();
  wait_for_previous();
  const int64_t row = blockIdx.x;
  for (int64_t column = threadIdx.x * 4; column < p.n; column += kMaxThreads * 4)
    finish4(p, row, column, load4(p.x, row, column), residual4(p, row, column));
}

struct GatedParams {
  Elements raw;
  EpilogueParams end;
};

__global__ __launch_bounds__(kMaxThreads) void finish_gated_kernel(GatedParams p) {
  let_next_start();
  wait_for_previous();
  const int64_t row = blockIdx.y;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kMaxThreads + threadIdx.x) * 2;
  if (column >= p.end.columns) return;
  const int64_t packed = column / 8 * 16 + column % 8;
  const float2 gate = load_pair(p.raw, row, packed, INT64_MAX);
  const float2 up = load_pair(p.raw, row, packed + 8, INT64_MAX);
  finish_gated(p.end, row, column, gate, up);
}

struct ConvertParams {
  Elements x, out;
  int64_t n, padded;
};

__global__ __launch_bounds__(kMaxThreads) void convert_kernel(ConvertParams p) {
  let_next_start();
  wait_for_previous();
  const int64_t row = blockIdx.x;
  for (int64_t c = threadIdx.x; c < p.padded; c += kMaxThreads) p.out.set(row, c, c < p.n ? p.x.get(row, c) : 0.0f);
}

}  // namespace

bool vector_rows(const Tensor& t) {
  return !t || (t.row_stride % 4 == 0 && reinterpret_cast<uintptr_t>(t.data) % (4 * size_of(t.dtype)) == 0);
}

void set_norm(FinishParams& p, const NormArgs& norm) {
  p.norm = true;
  p.layer = norm.kind == NormKind::kLayer;
  p.norm_weight = norm.weight.ptr<float>();
  p.norm_bias = norm.bias.ptr<float>();
  p.eps = norm.eps;
  p.norm_out = plain::elements(norm.out);
}

void finish_rows(Stream& stream, int64_t rows, const FinishParams& params) {
  FinishParams p = params;
  p.rows = rows;
  if (half_rows_serves(p)) return half_rows(stream, p);
  if (rows > kFewRows && norm_rows_serves(p)) return norm_rows(stream, p);
  if (!p.norm && p.n > kMaxNormColumns)
    return launch_fast(stream, "finish_rows", Grid{static_cast<unsigned>(rows)}, kMaxThreads, 0, finish_wide_kernel, p);
  const int64_t vectors = p.n / 4;
  // A warp a row where it holds it in 8 vectors and there are rows enough to fill the device.
  const bool warps = vectors <= 8 * 32 && rows >= 4096;
  const int threads = warps ? 32 : static_cast<int>(std::min<int64_t>(kMaxThreads, (vectors + 31) / 32 * 32));
  const int64_t each = (vectors + threads - 1) / threads;
  const unsigned rows_each = warps ? kMaxThreads / 32 : 1;
  const Grid grid{plain::blocks_for(rows, rows_each)};
  auto run = [&](auto kernel) {
    void* arguments[] = {&p};
    launch_with(cuda_stream(stream), p.norm ? "finish_norm" : "finish_rows", grid, threads, 0,
                reinterpret_cast<const void*>(kernel), arguments, {.overlap = true, .threads_y = rows_each});
  };
  auto choose = [&](auto ends) {
    constexpr bool kEnds = decltype(ends)::value;
    if (each <= 1)
      run(finish_kernel<1, kEnds>);
    else if (each <= 4)
      run(finish_kernel<4, kEnds>);
    else
      run(finish_kernel<8, kEnds>);
  };
  if (p.end.out.data)
    choose(std::true_type{});
  else if (p.norm && rows <= kFewRows)
    each <= 1 ? run(norm_few_kernel<1>) : each <= 4 ? run(norm_few_kernel<4>) : run(norm_few_kernel<8>);
  else
    choose(std::false_type{});
}

void finish_gated_rows(Stream& stream, int64_t rows, const Elements& raw, const EpilogueParams& end) {
  const Grid grid{plain::blocks_for(end.columns, 2 * kMaxThreads), static_cast<unsigned>(rows)};
  launch_fast(stream, "finish_gated", grid, kMaxThreads, 0, finish_gated_kernel, GatedParams{raw, end});
}

void convert_rows(Stream& stream, const Tensor& x, const Elements& out, int64_t padded) {
  launch_fast(stream, "convert_rows", Grid{static_cast<unsigned>(x.rows())}, kMaxThreads, 0, convert_kernel,
              ConvertParams{plain::elements(x), out, x.row_elements(), padded});
}

}  // namespace tessera::cuda
