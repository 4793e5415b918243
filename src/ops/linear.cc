#include "ops/linear.h"

#include "ops/door.h"

namespace tessera {
namespace {

void check_input_norm(const LinearArgs& args) {
  const NormArgs& before = args.input_norm;
  TESSERA_CHECK(before.out || !args.prepared, "[linear] a prepared norm is the input norm");
  if (!before.out) return;
  const int64_t k = args.weight->spec().cols;
  TESSERA_CHECK(!args.reduce, "[linear] a row-parallel weight takes columns of x, whose norm needs whole rows");
  check_floating("linear", "input_norm.out", before.out, args.x.rows(), k);
  check_vector("linear", "input_norm.weight", before.weight, DType::kF32, k);
  check_optional_vector("linear", "input_norm.bias", before.bias, DType::kF32, k);
  TESSERA_CHECK(!args.prepared || args.prepared->parts == 0 ||
                    (before.kind == NormKind::kRms && args.prepared->rows.data == before.out.data),
                "[linear] another norm was prepared");
}

void check_prepares(const LinearArgs& args) {
  if (!args.prepares) return;
  TESSERA_CHECK(!args.next_norm.out, "[linear] two norms follow");
  check_prepared("linear", *args.prepares, args.out);
}

void check_choices(const LinearArgs& args) {
  if (!args.choices) return;
  TESSERA_CHECK(args.choices->room.dtype == DType::kU8 && args.choices->room.contiguous(), "[linear] choices.room has gaps or is not u8");
  TESSERA_CHECK(args.choices->valid_ids >= 1 && args.choices->valid_ids <= args.out.row_elements(),
                "[linear] choices.valid_ids " + std::to_string(args.choices->valid_ids) + " of " + std::to_string(args.out.row_elements()));
  TESSERA_CHECK(!args.reduce && !args.next_norm.out && !args.prepares && args.out.dtype == DType::kF32,
                "[linear] choices are made of finished f32 rows that nothing follows");
}

void check_sums(const LinearArgs& args) {
  if (!args.x_sums && !args.out_sums) return;
  const LinearSpec& spec = args.weight->spec();
  TESSERA_CHECK(spec.use == WeightUse::kLinear && spec.dtype != DType::kF32 && !args.reduce && !args.input_norm.out &&
                    args.x.dtype == spec.dtype && args.out.dtype == spec.dtype && spec.cols % 32 == 0 && spec.rows % 32 == 0,
                "[linear] sums of rows go with whole products in the weight's dtype, of multiples of 32 rows and columns");
  if (args.x_sums) {
    TESSERA_CHECK(!args.residual && !args.scale && spec.cols % kSumColumns == 0, "[linear] no residual or scale after a folded norm, and whole sums");
    check_tensor("linear", "x_sums", args.x_sums, DType::kF32, args.x.rows(), 2 * spec.cols / kSumColumns);
    TESSERA_CHECK(args.x_sums.contiguous(), "[linear] x_sums has gaps");
  }
  if (args.out_sums) {
    TESSERA_CHECK(args.residual && args.residual.dtype == spec.dtype && args.activation == Activation::kNone && spec.rows % kSumColumns == 0,
                  "[linear] sums are made of rows that a residual of the same dtype joins");
    check_tensor("linear", "out_sums", args.out_sums, DType::kF32, args.x.rows(), 2 * spec.rows / kSumColumns);
    TESSERA_CHECK(args.out_sums.contiguous(), "[linear] out_sums has gaps");
  }
}

/// Makes the input's norm; returns what is left.
LinearArgs norm_first(const OpContext& ctx, const LinearArgs& args) {
  NormArgs before = args.input_norm;
  before.x = args.x;
  norm(ctx, before);
  LinearArgs rest = args;
  rest.x = before.out;
  rest.input_norm = {};
  rest.prepared = nullptr;
  return rest;
}

}  // namespace

void check_prepared(const char* op, const PreparedNorm& norm, const Tensor& out) {
  check_vector(op, "prepares.weight", norm.weight, DType::kF32, out.row_elements());
  check_floating(op, "prepares.rows", norm.rows, out.rows(), out.row_elements());
  TESSERA_CHECK(norm.squares.dtype == DType::kF32 && norm.squares.contiguous(),
                std::string("[") + op + "] prepares.squares has gaps or is not f32");
}

void check(const LinearArgs& args) {
  TESSERA_CHECK(args.weight != nullptr, "[linear] no weight");
  const LinearSpec& spec = args.weight->spec();
  const bool gated = args.activation == Activation::kSiluMul;
  TESSERA_CHECK(spec.use != WeightUse::kEmbedding, "[linear] the weight is a table for look-up only");
  TESSERA_CHECK(gated == (spec.use == WeightUse::kGated), "[linear] kSiluMul and a weight of use kGated go together");
  const int64_t columns = gated ? spec.rows / 2 : spec.rows;
  check_floating("linear", "x", args.x, -1, spec.cols);
  check_input_norm(args);
  const Tensor& factor = args.input_norm.out ? args.input_norm.out : args.x;
  TESSERA_CHECK(factor.dtype == spec.dtype || factor.dtype == DType::kF32,
                "[linear] x is " + factor.describe() + "; the weight computes in " + dtype_name(spec.dtype));
  check_floating("linear", "out", args.out, args.x.rows(), columns);
  check_optional_vector("linear", "bias", args.bias, DType::kF32, spec.rows);
  check_optional_vector("linear", "scale", args.scale, DType::kF32, columns);
  if (args.residual) check_floating("linear", "residual", args.residual, args.x.rows(), columns);
  check_next_norm("linear", args.next_norm, args.out);
  check_prepares(args);
  check_choices(args);
  check_sums(args);
}

void linear(const OpContext& ctx, const LinearArgs& args) {
  check(args);
  if (args.prepares) args.prepares->parts = 0;
  if (args.choices) args.choices->parts = 0;
  if (args.x.rows() == 0) return;
  if (args.input_norm.out) {
    if (ctx.kernels && ctx.kernels->norm_linear) return ctx.kernels->norm_linear(*ctx.stream, args);
    return linear(ctx, norm_first(ctx, args));
  }
  const auto kernel = kernel_of("linear", ctx, &KernelTable::linear);
  TESSERA_CHECK((!args.x_sums && !args.out_sums) || ctx.kernels->folded_norms, "[linear] this backend folds no norms");
  if (!args.reduce || ctx.rank.count == 1) return kernel(*ctx.stream, args);

  // Row-parallel: layer scale is linear, so each rank may scale its own products; bias and residual join the sum once,
  // on rank 0. The other ranks' residuals are copies of rank 0's, so nothing is lost where out is the residual itself.
  TESSERA_CHECK(ctx.comm != nullptr, "[linear] a row-parallel weight needs a communicator");
  TESSERA_CHECK(args.activation == Activation::kNone, "[linear] no activation between a row-parallel product and its sum");
  LinearArgs part = args;
  part.next_norm = {};
  part.prepares = nullptr;
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
