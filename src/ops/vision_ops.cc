#include "ops/vision_ops.h"

#include "ops/door.h"
#include "ops/linear.h"

namespace tessera {

void patch_embed(const OpContext& ctx, const PatchEmbedArgs& args) {
  TESSERA_CHECK(args.weight != nullptr, "[patch_embed] no weight");
  const Tensor& t = args.tiles;
  TESSERA_CHECK(t.dtype == DType::kU8 && t.rank == 4 && t.dims[1] == 3 && t.dims[2] == t.dims[3] && t.contiguous(),
                "[patch_embed] tiles is " + t.describe() + "; expected contiguous u8[tiles, 3, side, side]");
  TESSERA_CHECK(args.patch > 0 && t.dims[2] % args.patch == 0, "[patch_embed] side " + std::to_string(t.dims[2]) +
                                                                   " is no multiple of patch " +
                                                                   std::to_string(args.patch));
  const int64_t grid = (t.dims[2] / args.patch) * (t.dims[2] / args.patch);
  const LinearSpec& spec = args.weight->spec();
  const int64_t hidden = spec.rows;
  TESSERA_CHECK(spec.cols == int64_t{3} * args.patch * args.patch && spec.use == WeightUse::kLinear,
                "[patch_embed] the weight has " + std::to_string(spec.cols) + " columns");
  check_vector("patch_embed", "bias", args.bias, DType::kF32, hidden);
  check_vector("patch_embed", "class_token", args.class_token, DType::kF32, hidden);
  check_tensor("patch_embed", "positions", args.positions, DType::kF32, 1 + grid, hidden);
  check_tensor("patch_embed", "patches", args.patches, spec.dtype, t.rows() * grid, spec.cols);
  check_floating("patch_embed", "out", args.out, t.rows() * (1 + grid), hidden);
  if (args.out_sums) {
    TESSERA_CHECK(ctx.kernels->folded_norms, "[patch_embed] this backend folds no norms");
    TESSERA_CHECK(args.out.dtype == spec.dtype && hidden % kSumColumns == 0, "[patch_embed] sums are of rows of the weight's dtype, and whole");
    check_tensor("patch_embed", "out_sums", args.out_sums, DType::kF32, args.out.rows(), 2 * hidden / kSumColumns);
    TESSERA_CHECK(args.out.contiguous() && args.out_sums.contiguous(), "[patch_embed] rows or their sums have gaps");
  }
  if (t.rows() == 0) return;
  kernel_of("patch_embed", ctx, &KernelTable::patch_embed)(*ctx.stream, args);
}

void pixel_shuffle(const OpContext& ctx, const PixelShuffleArgs& args) {
  TESSERA_CHECK(args.version == 1 || args.version == 2,
                "[pixel_shuffle] version " + std::to_string(args.version) + "; expected 1 or 2");
  TESSERA_CHECK(args.side > 0 && args.side % 2 == 0, "[pixel_shuffle] side " + std::to_string(args.side) + " is odd");
  const int64_t hidden = args.x.row_elements();
  check_floating("pixel_shuffle", "x", args.x, args.tiles * (1 + args.side * args.side), -1);
  check_optional_vector("pixel_shuffle", "norm_weight", args.norm_weight, DType::kF32, 4 * hidden);
  check_optional_vector("pixel_shuffle", "norm_bias", args.norm_bias, DType::kF32, 4 * hidden);
  check_floating("pixel_shuffle", "out", args.out, args.tiles * args.side * args.side / 4, 4 * hidden);
  if (args.tiles == 0) return;
  kernel_of("pixel_shuffle", ctx, &KernelTable::pixel_shuffle)(*ctx.stream, args);
}

}  // namespace tessera
