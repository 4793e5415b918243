#include "ops/norm.h"

#include "backends/cuda/plain/plain.h"
#include "backends/cuda/plain/portable.h"

namespace tessera::cuda::plain {
namespace {

constexpr int kThreads = 256;

struct NormParams {
  Elements x, out;
  const float* weight;
  const float* bias;
  int64_t n;
  float eps;
  bool layer;
};

/// One block a row. The variance is taken around the mean in a second pass: one pass of sums of squares would cancel.
TESSERA_KERNEL(kThreads) norm_kernel(NormParams p) {
  float* scratch = static_cast<float*>(dynamic_shared());
  const int64_t row = block_x();
  const float n = static_cast<float>(p.n);
  float mean = 0;
  if (p.layer) {
    float sum = 0;
    for (int64_t i = thread_id(); i < p.n; i += kThreads) sum += p.x.get(row, i);
    mean = block_sum(sum, scratch) / n;
  }
  float squares = 0;
  for (int64_t i = thread_id(); i < p.n; i += kThreads) {
    const float d = p.x.get(row, i) - mean;
    squares += d * d;
  }
  const float inverse = 1.0f / sqrtf(block_sum(squares, scratch) / n + p.eps);
  for (int64_t i = thread_id(); i < p.n; i += kThreads)
    p.out.set(row, i, (p.x.get(row, i) - mean) * inverse * p.weight[i] + (p.bias ? p.bias[i] : 0.0f));
}

}  // namespace

void norm(Stream& stream, const NormArgs& args) {
  const NormParams p{.x = elements(args.x),
                     .out = elements(args.out),
                     .weight = args.weight.ptr<float>(),
                     .bias = args.bias.ptr<float>(),
                     .n = args.x.row_elements(),
                     .eps = args.eps,
                     .layer = args.kind == NormKind::kLayer};
  launch(stream, "plain_norm", {static_cast<unsigned>(args.x.rows())}, kThreads, 64 * sizeof(float), norm_kernel, p);
}

void following_norm(Stream& stream, const Tensor& out, const NormArgs& next) {
  if (!next.out) return;
  NormArgs args = next;
  args.x = out;
  norm(stream, args);
}

}  // namespace tessera::cuda::plain
