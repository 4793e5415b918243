#include "ops/linear.h"

#include "backends/cuda/plain/epilogue_math.h"
#include "backends/cuda/plain/plain.h"
#include "backends/cuda/plain/portable.h"
#include "backends/cuda_choice/weight_layout.h"

namespace tessera::cuda::plain {
namespace {

// A block makes 64 x 64 outputs with 4 x 4 a thread: each value of shared memory serves 4 multiply-adds. K goes in pieces
// of 16, so that both tiles take 8.5 KB and several blocks share a multiprocessor.
constexpr int kThreads = 256;
constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kStride = kTile + 4;  ///< rows of the tiles in shared memory: breaks bank conflicts of the stores

struct LinearParams {
  Elements x;
  Elements weight;  ///< packed
  int64_t m, k;
  int64_t packed_rows;
  bool gated;
  Activation activation;
  EpilogueParams end;
};

/// A value as the product sees it: an f32 activation is rounded to the weight's dtype first.
TESSERA_DEVICE float as_operand(float v, DType dtype) {
  if (dtype == DType::kF32) return v;
  uint16_t bits = 0;
  store_element(&bits, dtype, 0, v);
  return load_element(&bits, dtype, 0);
}

TESSERA_DEVICE void load_tiles(const LinearParams& p, int64_t row0, int64_t packed0, int64_t k0, float* a, float* b) {
  for (int i = thread_id(); i < kTile * kDepth; i += kThreads) {
    const int r = i / kDepth, c = i % kDepth;
    const bool inside = k0 + c < p.k;
    a[c * kStride + r] = inside && row0 + r < p.m ? as_operand(p.x.get(row0 + r, k0 + c), p.weight.dtype) : 0.0f;
    b[c * kStride + r] = inside && packed0 + r < p.packed_rows ? p.weight.get(packed0 + r, k0 + c) : 0.0f;
  }
}

TESSERA_DEVICE void finish(const EpilogueParams& e, Activation activation, int64_t row, int64_t column, float v) {
  if (activation == Activation::kGelu) v = gelu(v);
  if (e.scale) v *= e.scale[column];
  if (e.residual.data) v += e.residual.get(e.residual_row(row), column);
  e.out.set(e.out_row(row), column, v);
}

/// A thread's columns lie 8 apart, the width of a gate group: columns 0 and 1 (2 and 3) are then a gate and its up.
TESSERA_KERNEL(kThreads) linear_kernel(LinearParams p) {
  float* a = static_cast<float*>(dynamic_shared());
  float* b = a + kDepth * kStride;
  const int tx = thread_id() % 16, ty = thread_id() / 16;
  const int64_t row0 = static_cast<int64_t>(block_y()) * kTile, packed0 = static_cast<int64_t>(block_x()) * kTile;
  const int lane_column = tx / 8 * 32 + tx % 8;
  float sum[4][4] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
    load_tiles(p, row0, packed0, k0, a, b);
    barrier();
    for (int c = 0; c < kDepth; ++c)
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j)
          sum[i][j] += a[c * kStride + ty * 4 + i] * b[c * kStride + lane_column + 8 * j];
    barrier();
  }
  for (int i = 0; i < 4; ++i) {
    const int64_t row = row0 + ty * 4 + i;
    if (row >= p.m) continue;
    for (int j = 0; j < 4; ++j) {
      const int64_t packed = packed0 + lane_column + 8 * j;
      if (!p.gated) {
        if (packed < p.end.columns)
          finish(p.end, p.activation, row, packed, sum[i][j] + (p.end.bias ? p.end.bias[packed] : 0.0f));
        continue;
      }
      const int64_t column = packed / (2 * kGateGroup) * kGateGroup + packed % kGateGroup;
      if (j % 2 != 0 || column >= p.end.columns) continue;
      const float gate = sum[i][j] + (p.end.bias ? p.end.bias[column] : 0.0f);
      const float up = sum[i][j + 1] + (p.end.bias ? p.end.bias[p.end.columns + column] : 0.0f);
      finish(p.end, Activation::kNone, row, column, silu(gate) * up);
    }
  }
}

struct EpilogueKernelParams {
  Elements x;
  EpilogueParams end;
};

TESSERA_KERNEL(kThreads) epilogue_kernel(EpilogueKernelParams p) {
  const int64_t row = block_x();
  for (int64_t c = thread_id(); c < p.end.columns; c += kThreads)
    finish(p.end, Activation::kNone, row, c, p.x.get(row, c) + (p.end.bias ? p.end.bias[c] : 0.0f));
}

}  // namespace

void product(Stream& stream, const LinearArgs& args, const EpilogueParams& end) {
  const LinearSpec& spec = args.weight->spec();
  const PackedShape packed = packed_shape(spec);
  const LinearParams p{.x = elements(args.x),
                       .weight = {args.weight->data(), packed.cols, spec.dtype},
                       .m = args.x.rows(),
                       .k = spec.cols,
                       .packed_rows = packed.rows,
                       .gated = spec.use == WeightUse::kGated,
                       .activation = args.activation,
                       .end = end};
  const Grid grid{blocks_for(packed.rows, kTile), blocks_for(p.m, kTile)};
  launch(stream, "plain_linear", grid, kThreads, 2 * kDepth * kStride * sizeof(float), linear_kernel, p);
}

void linear(Stream& stream, const LinearArgs& args) {
  product(stream, args, epilogue_params(args));
  following_norm(stream, args.out, args.next_norm);
}

void epilogue(Stream& stream, const EpilogueArgs& args) {
  LinearArgs as_linear;
  as_linear.bias = args.bias;
  as_linear.scale = args.scale;
  as_linear.residual = args.residual;
  as_linear.out = args.out;
  const EpilogueKernelParams p{elements(args.x), epilogue_params(as_linear)};
  launch(stream, "plain_epilogue", {static_cast<unsigned>(args.x.rows())}, kThreads, 0, epilogue_kernel, p);
  following_norm(stream, args.out, args.next_norm);
}

}  // namespace tessera::cuda::plain
