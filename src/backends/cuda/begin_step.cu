#include "ops/begin_step.h"

#include <algorithm>

#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/operators.h"
#include "backends/cuda/plain/angles.h"
#include "backends/cuda/plain/plain.h"
#include "backends/cuda/row_vectors.cuh"
#include "backends/cuda/rows.h"
#include "backends/cuda_choice/weight_layout.h"

namespace tessera::cuda {
namespace {

// A block a token. One more warp than its row needs makes the angles: these are short and need not wait for the row, which is
// three loads in a chain (id, the id that the step before sampled, the row itself).
constexpr int kMostThreads = 256, kAngleThreads = 32;

struct BeginParams {
  const int* ids;
  const int* sampled;
  const int* image_index;
  Elements table, images, out;
  int n;
  plain::AngleParams angles;
  // The first product's norm, as narrow_linear takes it (NormAhead); weight null: it is not prepared.
  const float* weight;
  Elements rows;
  float* squares;
};

/// The next kernels may start when all angles can be seen: products read them ahead of their wait.
__device__ __forceinline__ void make_angles(const plain::AngleParams& p, int token) {
  const int position = p.positions[token], length = p.rope_lengths[token];
  for (int i = static_cast<int>(threadIdx.x) % kAngleThreads; i < p.half; i += kAngleThreads)
    plain::leave_angle(p, token, position, length, i);
  __threadfence();
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.global;" ::: "memory");  // by bulk copies
#endif
  __syncwarp();
  let_next_start();
}

/// What a warp's columns leave of the row's sum of squares is a part of it; parts come in fours.
__device__ __forceinline__ void leave_squares(float* squares, int token, int warps, float v) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, tokens = static_cast<int>(gridDim.x);
  auto leave = [&](int part, float sum) { squares[(part / 4 * tokens + token) * 4 + part % 4] = sum; };
  if (lane == 0) leave(warp, v);
  if (warp == 0 && lane >= warps && lane < (warps + 3) / 4 * 4) leave(lane, 0.0f);
}

template <int kVectors>
__global__ __launch_bounds__(kMostThreads + kAngleThreads) void begin_kernel(const __grid_constant__ BeginParams p) {
  const int token = static_cast<int>(blockIdx.x), threads = static_cast<int>(blockDim.x) - kAngleThreads;
  auto column = [&](int i) { return (i * threads + static_cast<int>(threadIdx.x)) * 4; };
  float4 weight[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (p.weight && column(i) < p.n) weight[i] = __ldg(reinterpret_cast<const float4*>(p.weight + column(i)));
  wait_for_previous();
  if (static_cast<int>(threadIdx.x) >= threads) return make_angles(p.angles, token);
  const int image = p.image_index[token];
  int id = p.ids[token];
  if (id < 0 && image < 0) id = p.sampled[-1 - id];
  const Elements& from = image >= 0 ? p.images : p.table;
  const int row = image >= 0 ? image : id;
  float4 v[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) v[i] = column(i) < p.n ? load4(from, row, column(i)) : make_float4(0, 0, 0, 0);
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (column(i) >= p.n) continue;
    store4(p.out, token, column(i), v[i]);
    if (!p.weight) continue;
    const float4 w = weight[i];
    store4(p.rows, token, column(i), make_float4(v[i].x * w.x, v[i].y * w.y, v[i].z * w.z, v[i].w * w.w));
    squares += (v[i].x * v[i].x + v[i].y * v[i].y) + (v[i].z * v[i].z + v[i].w * v[i].w);
  }
  if (p.weight) leave_squares(p.squares, token, threads / 32, squares);
}

/// Whether the first product takes the norm in halves: narrow_linear does, of bf16.
bool prepares_norm(CudaStream& stream, const BeginStepArgs& args, int64_t parts) {
  if (!args.prepares) return false;
  const PreparedNorm& norm = *args.prepares;
  const int64_t tokens = args.embed.ids.elements();
  return norm.rows.dtype == DType::kBF16 && stream.device.plan(DType::kBF16).narrow && tokens > kDotRows && tokens <= kNarrowRows &&
         vector_rows(norm.rows) && reinterpret_cast<uintptr_t>(norm.weight.data) % sizeof(float4) == 0 &&
         parts * tokens <= norm.squares.elements();
}

}  // namespace

void begin_step(Stream& stream, const BeginStepArgs& args) {
  CudaStream& s = cuda_stream(stream);
  const EmbedArgs& e = args.embed;
  const LinearSpec& spec = e.table->spec();
  const int64_t n = e.out.row_elements(), vectors = n / 4, table_stride = packed_shape(spec).cols;
  const bool aligned = vector_rows(e.out) && vector_rows(e.image_rows) && table_stride % 4 == 0;
  if (n % 4 != 0 || n > kMaxNormColumns || !aligned || s.device.limits.warp_size != 32) {
    plain::embed(stream, e);
    return plain::rope_angles(stream, args.angles);
  }
  const int threads = static_cast<int>(std::min<int64_t>(kMostThreads, (vectors + 31) / 32 * 32));
  const int64_t parts = (threads / 32 + 3) / 4 * 4;
  BeginParams p{.ids = e.ids.ptr<int>(),
                .sampled = e.sampled_ids.ptr<int>(),
                .image_index = e.image_index.ptr<int>(),
                .table = {e.table->data(), table_stride, spec.dtype},
                .images = plain::elements(e.image_rows),
                .out = plain::elements(e.out),
                .n = static_cast<int>(n),
                .angles = plain::angle_params(args.angles)};
  if (prepares_norm(s, args, parts)) {
    p.weight = args.prepares->weight.ptr<float>();
    p.rows = plain::elements(args.prepares->rows);
    p.squares = args.prepares->squares.ptr<float>();
    args.prepares->parts = parts;
  }
  const Grid grid{static_cast<unsigned>(e.ids.elements())};
  auto run = [&](void (*kernel)(BeginParams)) { launch_fast(stream, "begin_step", grid, threads + kAngleThreads, 0, kernel, p, {.overlap = true, .settles = true}); };
  const int64_t each = (vectors + threads - 1) / threads;
  each <= 1 ? run(begin_kernel<1>) : each <= 4 ? run(begin_kernel<4>) : run(begin_kernel<8>);
}

}  // namespace tessera::cuda
