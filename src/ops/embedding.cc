#include "ops/embedding.h"

#include "ops/door.h"

namespace tessera {

void check(const EmbedArgs& args) {
  TESSERA_CHECK(args.table != nullptr, "[embed] no table");
  const LinearSpec& spec = args.table->spec();
  TESSERA_CHECK(spec.use == WeightUse::kEmbedding || spec.use == WeightUse::kTied,
                "[embed] the weight is not a table for look-up");
  const int64_t tokens = args.ids.elements();
  check_vector("embed", "ids", args.ids, DType::kI32, tokens);
  if (args.sampled_ids) check_vector("embed", "sampled_ids", args.sampled_ids, DType::kI32, args.sampled_ids.elements());
  check_vector("embed", "image_index", args.image_index, DType::kI32, tokens);
  if (args.image_rows) check_floating("embed", "image_rows", args.image_rows, -1, spec.cols);
  check_floating("embed", "out", args.out, tokens, spec.cols);
}

void embed(const OpContext& ctx, const EmbedArgs& args) {
  check(args);
  if (args.ids.elements() == 0) return;
  kernel_of("embed", ctx, &KernelTable::embed)(*ctx.stream, args);
}

void gather_rows(const OpContext& ctx, const GatherRowsArgs& args) {
  const int64_t rows = args.indices.elements();
  check_floating("gather_rows", "x", args.x, -1, -1);
  check_vector("gather_rows", "indices", args.indices, DType::kI32, rows);
  check_floating("gather_rows", "out", args.out, rows, args.x.row_elements());
  if (rows == 0) return;
  kernel_of("gather_rows", ctx, &KernelTable::gather_rows)(*ctx.stream, args);
}

void scatter_rows(const OpContext& ctx, const ScatterRowsArgs& args) {
  const int64_t rows = args.indices.elements();
  check_floating("scatter_rows", "x", args.x, rows, -1);
  check_vector("scatter_rows", "indices", args.indices, DType::kI32, rows);
  check_floating("scatter_rows", "out", args.out, -1, args.x.row_elements());
  if (rows == 0) return;
  kernel_of("scatter_rows", ctx, &KernelTable::scatter_rows)(*ctx.stream, args);
}

void copy_blocks(const OpContext& ctx, const CopyBlocksArgs& args) {
  check_tensor("copy_blocks", "pairs", args.pairs, DType::kI32, -1, 2);
  if (args.pairs.rows() == 0) return;
  TESSERA_CHECK(args.base != nullptr && args.block_bytes > 0 && args.pairs.contiguous(), "[copy_blocks] no KV memory");
  kernel_of("copy_blocks", ctx, &KernelTable::copy_blocks)(*ctx.stream, args);
}

}  // namespace tessera
