#include "ops/linear.h"

#include "ops/door.h"

namespace tessera {
namespace {

void check(const LinearArgs& args) {
  TESSERA_CHECK(args.weight != nullptr, "[linear] no weight");
  const LinearSpec& spec = args.weight->spec();
  const bool gated = args.activation == Activation::kSiluMul;
  TESSERA_CHECK(spec.use != WeightUse::kEmbedding, "[linear] the weight is a table for look-up only");
  TESSERA_CHECK(gated == (spec.use == WeightUse::kGated), "[linear] kSiluMul and a weight of use kGated go together");
  const int64_t columns = gated ? spec.rows / 2 : spec.rows;
  check_floating("linear", "x", args.x, -1, spec.cols);
  TESSERA_CHECK(args.x.dtype == spec.dtype || args.x.dtype == DType::kF32,
                "[linear] x is " + args.x.describe() + "; the weight computes in " + dtype_name(spec.dtype));
  check_floating("linear", "out", args.out, args.x.rows(), columns);
  check_optional_vector("linear", "bias", args.bias, DType::kF32, spec.rows);
  check_optional_vector("linear", "scale", args.scale, DType::kF32, columns);
  if (args.residual) check_floating("linear", "residual", args.residual, args.x.rows(), columns);
  check_next_norm("linear", args.next_norm, args.out);
}

}  // namespace

void linear(const OpContext& ctx, const LinearArgs& args) {
  check(args);
  if (args.x.rows() == 0) return;
  const auto kernel = kernel_of("linear", ctx, &KernelTable::linear);
  if (!args.reduce || ctx.rank.count == 1) return kernel(*ctx.stream, args);

  // Row-parallel: layer scale is linear, so each rank may scale its own products; bias and residual join the sum once,
  // on rank 0. The other ranks' residuals are copies of rank 0's, so nothing is lost where out is the residual itself.
  TESSERA_CHECK(ctx.comm != nullptr, "[linear] a row-parallel weight needs a communicator");
  TESSERA_CHECK(args.activation == Activation::kNone, "[linear] no activation between a row-parallel product and its sum");
  LinearArgs part = args;
  part.next_norm = {};
  if (ctx.rank.index != 0) part.bias = part.residual = {};
  kernel(*ctx.stream, part);
  ctx.comm->all_reduce(*ctx.stream, args.out);
  next_norm(ctx, args.next_norm, args.out);
}

void epilogue(const OpContext& ctx, const EpilogueArgs& args) {
  const int64_t n = args.x.row_elements();
  check_floating("epilogue", "x", args.x, -1, -1);
  check_floating("epilogue", "out", args.out, args.x.rows(), n);
  check_optional_vector("epilogue", "bias", args.bias, DType::kF32, n);
  check_optional_vector("epilogue", "scale", args.scale, DType::kF32, n);
  if (args.residual) check_floating("epilogue", "residual", args.residual, args.x.rows(), n);
  check_next_norm("epilogue", args.next_norm, args.out);
  if (args.x.rows() == 0) return;
  kernel_of("epilogue", ctx, &KernelTable::epilogue)(*ctx.stream, args);
}

}  // namespace tessera
