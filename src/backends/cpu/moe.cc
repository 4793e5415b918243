#include "ops/moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backends/cpu/kernels.h"
#include "backends/cpu/linear.h"

namespace tessera::cpu {
namespace {

struct Choice {
  int32_t expert = 0;
  float weight = 0;
};

/// The top_k best experts of one row of router logits, in ascending index, with their weights.
void route(const float* logits, int64_t experts, int top_k, bool normalise, Choice* out) {
  std::vector<int32_t> order(static_cast<size_t>(experts));
  for (size_t e = 0; e < order.size(); ++e) order[e] = static_cast<int32_t>(e);
  std::partial_sort(order.begin(), order.begin() + top_k, order.end(), [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  const float largest = logits[order[0]];
  float all = 0, chosen = 0;
  for (int64_t e = 0; e < experts; ++e) all += std::exp(logits[e] - largest);
  std::sort(order.begin(), order.begin() + top_k);
  for (int i = 0; i < top_k; ++i) {
    const int32_t expert = order[static_cast<size_t>(i)];
    out[i] = {expert, std::exp(logits[expert] - largest) / all};
    chosen += out[i].weight;
  }
  if (normalise)
    for (int i = 0; i < top_k; ++i) out[i].weight /= chosen;
}

/// Tokens sorted by expert: entry j of `slots` is token * top_k + its rank among the token's experts.
struct Routing {
  std::vector<Choice> choices;  ///< [tokens, top_k]
  std::vector<int64_t> slots;   ///< grouped by expert, tokens ascending
  std::vector<int64_t> begin;   ///< [experts + 1] into slots
};

Routing group(CpuStream& stream, const MoeArgs& args) {
  const int64_t tokens = args.x.rows(), experts = args.router->spec().rows, k = args.top_k;
  Routing routing;
  routing.choices.resize(static_cast<size_t>(tokens * k));
  parallel_rows(stream, tokens, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t)
      route(args.router_logits.row<const float>(t), experts, args.top_k, args.normalise_top_k,
            routing.choices.data() + t * k);
  });
  routing.begin.assign(static_cast<size_t>(experts + 1), 0);
  for (const Choice& choice : routing.choices) ++routing.begin[static_cast<size_t>(choice.expert + 1)];
  for (size_t e = 0; e < static_cast<size_t>(experts); ++e) routing.begin[e + 1] += routing.begin[e];
  std::vector<int64_t> next(routing.begin.begin(), routing.begin.end() - 1);
  routing.slots.resize(routing.choices.size());
  for (size_t slot = 0; slot < routing.choices.size(); ++slot)
    routing.slots[static_cast<size_t>(next[static_cast<size_t>(routing.choices[slot].expert)]++)] =
        static_cast<int64_t>(slot);
  return routing;
}

}  // namespace

void moe(Stream& s, const MoeArgs& args) {
  CpuStream& stream = cpu_stream(s);
  const int64_t tokens = args.x.rows(), hidden = args.x.row_elements(), k = args.top_k;
  run_product(stream, {.x = args.x, .weight = args.router, .out = args.router_logits});
  const Routing routing = group(stream, args);

  // expert_out first holds the gathered inputs of one expert, then its outputs; both are rows in the order of `slots`.
  const auto x_bytes = static_cast<size_t>(hidden) * size_of(args.x.dtype);
  for (size_t e = 0; e + 1 < routing.begin.size(); ++e) {
    const int64_t begin = routing.begin[e], count = routing.begin[e + 1] - begin;
    if (count == 0) continue;
    const Tensor out = args.expert_out.slice(begin, count);
    Tensor in(out.data, args.x.dtype, {count, hidden});
    in.row_stride = out.row_stride * 4 / static_cast<int64_t>(size_of(args.x.dtype));
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(in.slice(i, 1).data, args.x.slice(routing.slots[static_cast<size_t>(begin + i)] / k, 1).data, x_bytes);
    const Tensor middle = args.expert_hidden.slice(begin, count);
    run_product(stream, {.x = in,
                         .weight = args.gate_up,
                         .expert = static_cast<int64_t>(e),
                         .activation = Activation::kSiluMul,
                         .out = middle});
    run_product(stream, {.x = middle, .weight = args.down, .expert = static_cast<int64_t>(e), .out = out});
  }

  std::vector<int64_t> place(routing.slots.size());  // of a token's i-th expert among the rows of expert_out
  for (size_t row = 0; row < place.size(); ++row) place[static_cast<size_t>(routing.slots[row])] = static_cast<int64_t>(row);
  parallel_rows(stream, tokens, 4, [&](int64_t first, int64_t end, int thread) {
    Scratch& scratch = stream.scratch_of(thread);
    scratch.reset();
    float* sum = scratch.take<float>(hidden);
    for (int64_t t = first; t < end; ++t) {
      std::fill(sum, sum + hidden, 0.0f);
      for (int64_t i = t * k; i < (t + 1) * k; ++i) {
        const float weight = routing.choices[static_cast<size_t>(i)].weight;
        const float* row = args.expert_out.row<const float>(place[static_cast<size_t>(i)]);
        for (int64_t j = 0; j < hidden; ++j) sum[j] += weight * row[j];
      }
      EpilogueRowArgs to = epilogue_to(args.residual, args.out, t, 0, hidden);
      to.c = sum;
      stream.leaf.epilogue_row(to);
    }
  });
  next_norm(s, args.next_norm, args.out);
}

}  // namespace tessera::cpu
