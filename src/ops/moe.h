#pragma once

#include "ops/context.h"
#include "ops/norm.h"
#include "ops/weight.h"

namespace tessera {

/// Mixture of experts (Qwen3-MoE): softmax over the router's logits in f32, the top_k best (the lower index of equals),
/// renormalised to sum 1 when asked; out = residual + sum of weight * down(silu(gate(x)) * up(x)), summed in ascending
/// expert index.
struct MoeArgs {
  Tensor x;                         ///< [tokens, hidden], normed
  const Weight* router = nullptr;   ///< [experts, hidden]
  const Weight* gate_up = nullptr;  ///< kGated, experts stacked: [2 * ffn, hidden] each
  const Weight* down = nullptr;     ///< experts stacked: [hidden, ffn] each
  int top_k = 8;
  bool normalise_top_k = true;
  Tensor router_logits;  ///< workspace: f32 [tokens, experts]
  Tensor expert_hidden;  ///< workspace: x's dtype [tokens * top_k, ffn]
  Tensor expert_out;     ///< workspace: f32 [tokens * top_k, hidden]
  Tensor residual;       ///< [tokens, hidden] or absent; may be `out` itself
  Tensor out;            ///< [tokens, hidden]
  NormArgs next_norm;    ///< as in LinearArgs
  bool reduce = false;   ///< experts' features are split over the ranks; as in LinearArgs
};

void moe(const OpContext& ctx, const MoeArgs& args);

}  // namespace tessera
