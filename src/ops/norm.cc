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

}  // namespace tessera
