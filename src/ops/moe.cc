#include "ops/moe.h"

#include "ops/door.h"

namespace tessera {
namespace {

void check(const MoeArgs& args) {
  TESSERA_CHECK(args.router && args.gate_up && args.down, "[moe] a weight is missing");
  const int64_t tokens = args.x.rows();
  const int64_t hidden = args.x.row_elements();
  const int64_t experts = args.router->spec().rows;
  const LinearSpec& gate_up = args.gate_up->spec();
  const LinearSpec& down = args.down->spec();
  const int64_t ffn = gate_up.rows / 2;
  TESSERA_CHECK(args.router->spec().cols == hidden && gate_up.cols == hidden && gate_up.experts == experts &&
                    gate_up.use == WeightUse::kGated && down.experts == experts && down.rows == hidden &&
                    down.cols == ffn,
                "[moe] the shapes of router, gate_up and down do not belong together");
  TESSERA_CHECK(args.top_k >= 1 && args.top_k <= experts,
                "[moe] top_k " + std::to_string(args.top_k) + " of " + std::to_string(experts) + " experts");
  check_floating("moe", "x", args.x, -1, -1);
  TESSERA_CHECK(args.x.dtype == gate_up.dtype || args.x.dtype == DType::kF32,
                "[moe] x is " + args.x.describe() + "; the experts compute in " + dtype_name(gate_up.dtype));
  check_tensor("moe", "router_logits", args.router_logits, DType::kF32, tokens, experts);
  check_tensor("moe", "expert_hidden", args.expert_hidden, args.x.dtype, tokens * args.top_k, ffn);
  check_tensor("moe", "expert_out", args.expert_out, DType::kF32, tokens * args.top_k, hidden);
  if (args.residual) check_floating("moe", "residual", args.residual, tokens, hidden);
  check_floating("moe", "out", args.out, tokens, hidden);
  check_next_norm("moe", args.next_norm, args.out);
}

}  // namespace

void moe(const OpContext& ctx, const MoeArgs& args) {
  check(args);
  if (args.x.rows() == 0) return;
  const auto kernel = kernel_of("moe", ctx, &KernelTable::moe);
  if (!args.reduce || ctx.rank.count == 1) return kernel(*ctx.stream, args);
  TESSERA_CHECK(ctx.comm != nullptr, "[moe] experts split over ranks need a communicator");
  MoeArgs part = args;  // as in linear: the residual joins the sum once
  part.next_norm = {};
  if (ctx.rank.index != 0) part.residual = {};
  kernel(*ctx.stream, part);
  ctx.comm->all_reduce(*ctx.stream, args.out);
  next_norm(ctx, args.next_norm, args.out);
}

}  // namespace tessera
