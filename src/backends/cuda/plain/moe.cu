#include "ops/moe.h"

#include "backends/cuda/plain/epilogue_math.h"
#include "backends/cuda/plain/plain.h"
#include "backends/cuda/plain/portable.h"
#include "backends/cuda_choice/weight_layout.h"

namespace tessera::cuda::plain {
namespace {

constexpr int kThreads = 256;

struct SelectParams {
  const float* logits;
  int64_t stride;
  int experts, top_k;
  bool normalise;
  int* ids;        ///< [tokens, top_k], ascending
  float* weights;  ///< [tokens, top_k]
};

/// Whether expert a comes before expert b: the larger logit, the lower index of equals.
TESSERA_DEVICE bool before(const float* logits, int a, int b) {
  return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

/// One block a token. An expert is chosen when fewer than top_k come before it; its place among the chosen is the
/// number of chosen ones with a lower index. Quadratic in the experts (128: 16 k comparisons), and free of order.
TESSERA_KERNEL(kThreads) select_kernel(SelectParams p) {
  float* scratch = static_cast<float*>(dynamic_shared());
  float* chosen = scratch + 64;  // [experts], the probability or -1
  const float* logits = p.logits + block_x() * p.stride;
  float best = -INFINITY;
  for (int e = thread_id(); e < p.experts; e += kThreads) best = logits[e] > best ? logits[e] : best;
  best = block_max(best, scratch);
  float sum = 0, kept = 0;
  for (int e = thread_id(); e < p.experts; e += kThreads) {
    int earlier = 0;
    for (int other = 0; other < p.experts; ++other) earlier += before(logits, other, e) ? 1 : 0;
    const float probability = expf(logits[e] - best);
    sum += probability;
    chosen[e] = earlier < p.top_k ? probability : -1.0f;
    if (earlier < p.top_k) kept += probability;
  }
  sum = block_sum(sum, scratch);
  kept = block_sum(kept, scratch);
  for (int e = thread_id(); e < p.experts; e += kThreads) {
    if (chosen[e] < 0) continue;
    int place = 0;
    for (int other = 0; other < e; ++other) place += chosen[other] >= 0 ? 1 : 0;
    p.ids[block_x() * p.top_k + place] = e;
    p.weights[block_x() * p.top_k + place] = chosen[e] / (p.normalise ? kept : sum);
  }
}

// A block makes 64 packed rows of one (token, expert) product; four threads share a row.
constexpr int kRows = 64;
constexpr int kShare = kThreads / kRows;
constexpr int kChunk = 1024;

struct ExpertParams {
  Elements x;
  const char* weight;
  int64_t expert_bytes, stride, k, columns;
  DType dtype;
  const int* ids;
  int top_k;
  bool by_token;  ///< x has a row a token (else one a pair)
  bool gated;
  Elements out;   ///< [pairs, columns]
};

TESSERA_KERNEL(kThreads) expert_kernel(ExpertParams p) {
  float* x = static_cast<float*>(dynamic_shared());
  float* sums = x + kChunk;  // [kThreads]
  const int64_t pair = block_y(), packed0 = static_cast<int64_t>(block_x()) * kRows;
  const int r = thread_id() / kShare, part = thread_id() % kShare;
  const Elements w{const_cast<char*>(p.weight) + p.ids[pair] * p.expert_bytes, p.stride, p.dtype};
  const int64_t x_row = p.by_token ? pair / p.top_k : pair;
  float sum = 0;
  for (int64_t k0 = 0; k0 < p.k; k0 += kChunk) {
    const int count = static_cast<int>(p.k - k0 < kChunk ? p.k - k0 : kChunk);
    for (int i = thread_id(); i < count; i += kThreads) {
      float v = p.x.get(x_row, k0 + i);
      if (p.dtype != DType::kF32) {
        uint16_t bits = 0;
        store_element(&bits, p.dtype, 0, v);
        v = load_element(&bits, p.dtype, 0);
      }
      x[i] = v;
    }
    barrier();
    for (int i = part; i < count; i += kShare) sum += x[i] * w.get(packed0 + r, k0 + i);
    barrier();
  }
  sums[thread_id()] = sum;
  barrier();
  if (thread_id() >= kRows) return;
  const int row = thread_id();
  auto total = [&](int i) {
    return (sums[i * kShare] + sums[i * kShare + 1]) + (sums[i * kShare + 2] + sums[i * kShare + 3]);
  };
  if (!p.gated) {
    if (packed0 + row < p.columns) p.out.set(pair, packed0 + row, total(row));
    return;
  }
  const int64_t packed = packed0 + row;
  const int64_t column = packed / (2 * kGateGroup) * kGateGroup + packed % kGateGroup;
  if (packed % (2 * kGateGroup) < kGateGroup && column < p.columns)
    p.out.set(pair, column, silu(total(row)) * total(row + static_cast<int>(kGateGroup)));
}

struct CombineParams {
  const float* expert_out;
  int64_t stride;
  const float* weights;
  int top_k;
  Elements residual, out;
  int64_t n;
};

TESSERA_KERNEL(kThreads) combine_kernel(CombineParams p) {
  const int64_t token = block_x();
  for (int64_t c = thread_id(); c < p.n; c += kThreads) {
    float sum = 0;
    for (int i = 0; i < p.top_k; ++i)
      sum += p.weights[token * p.top_k + i] * p.expert_out[(token * p.top_k + i) * p.stride + c];
    p.out.set(token, c, sum + (p.residual.data ? p.residual.get(token, c) : 0.0f));
  }
}

ExpertParams expert_params(const Tensor& x, const Weight& weight, const Tensor& out) {
  const LinearSpec& spec = weight.spec();
  const PackedShape packed = packed_shape(spec);
  return {.x = elements(x),
          .weight = static_cast<const char*>(weight.data()),
          .expert_bytes = static_cast<int64_t>(packed.expert_bytes),
          .stride = packed.cols,
          .k = spec.cols,
          .columns = out.row_elements(),
          .dtype = spec.dtype,
          .gated = spec.use == WeightUse::kGated,
          .out = elements(out)};
}

}  // namespace

void moe(Stream& stream, const MoeArgs& args) {
  LinearArgs router;
  router.x = args.x;
  router.weight = args.router;
  router.out = args.router_logits;
  linear(stream, router);

  const int64_t tokens = args.x.rows(), pairs = tokens * args.top_k;
  const auto experts = static_cast<int>(args.router->spec().rows);
  auto* ids = static_cast<int*>(operator_scratch(stream, static_cast<size_t>(pairs) * 8, "moe"));
  auto* weights = reinterpret_cast<float*>(ids + pairs);
  const SelectParams select{.logits = args.router_logits.ptr<float>(),
                            .stride = args.router_logits.row_stride,
                            .experts = experts,
                            .top_k = args.top_k,
                            .normalise = args.normalise_top_k,
                            .ids = ids,
                            .weights = weights};
  // Rounded up: the compiler may load 16 bytes where the loop reads fewer.
  launch(stream, "plain_moe_select", {static_cast<unsigned>(tokens)}, kThreads,
         sizeof(float) * (64 + static_cast<size_t>(round_up(experts, 4))), select_kernel, select);

  auto run = [&](ExpertParams p, bool by_token, const char* name, int64_t packed_rows) {
    p.ids = ids;
    p.top_k = args.top_k;
    p.by_token = by_token;
    launch(stream, name, {blocks_for(packed_rows, kRows), static_cast<unsigned>(pairs)}, kThreads,
           sizeof(float) * (kChunk + kThreads), expert_kernel, p);
  };
  run(expert_params(args.x, *args.gate_up, args.expert_hidden), true, "plain_moe_gate_up",
      packed_shape(args.gate_up->spec()).rows);
  run(expert_params(args.expert_hidden, *args.down, args.expert_out), false, "plain_moe_down",
      packed_shape(args.down->spec()).rows);

  CombineParams combine{.expert_out = args.expert_out.ptr<float>(),
                        .stride = args.expert_out.row_stride,
                        .weights = weights,
                        .top_k = args.top_k,
                        .out = elements(args.out),
                        .n = args.out.row_elements()};
  if (args.residual) combine.residual = elements(args.residual);
  launch(stream, "plain_moe_combine", {static_cast<unsigned>(tokens)}, kThreads, 0, combine_kernel, combine);
  following_norm(stream, args.out, args.next_norm);
}

}  // namespace tessera::cuda::plain
