#include "ops/norm.h"

#include "ops/door.h"

namespace tessera {

void norm(const OpContext& ctx, const NormArgs& args) {
  const int64_t n = args.x.row_elements();
  check_floating("norm", "x", args.x, -1, -1);
  check_vector("norm", "weight", args.weight, DType::kF32, n);
  check_optional_vector("norm", "bias", args.bias, DType::kF32, n);
  check_floating("norm", "out", args.out, args.x.rows(), n);
  TESSERA_CHECK(args.out.data != args.x.data || args.out.dtype == args.x.dtype,
                "[norm] in place needs equal dtypes: x " + args.x.describe() + ", out " + args.out.describe());
  if (args.x.rows() == 0) return;
  kernel_of("norm", ctx, &KernelTable::norm)(*ctx.stream, args);
}

void check_next_norm(const char* op, const NormArgs& next, const Tensor& out) {
  if (!next.out) return;
  check_floating(op, "next_norm.out", next.out, out.rows(), out.row_elements());
  check_vector(op, "next_norm.weight", next.weight, DType::kF32, out.row_elements());
  check_optional_vector(op, "next_norm.bias", next.bias, DType::kF32, out.row_elements());
}

void next_norm(const OpContext& ctx, const NormArgs& next, const Tensor& out) {
  if (!next.out) return;
  NormArgs args = next;
  args.x = out;
  norm(ctx, args);
}

}  // namespace tessera
