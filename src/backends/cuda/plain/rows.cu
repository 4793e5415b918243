#include "backends/cuda/plain/plain.h"
#include "backends/cuda/plain/portable.h"
#include "backends/cuda_choice/weight_layout.h"
#include "ops/embedding.h"

namespace tessera::cuda::plain {
namespace {

constexpr int kThreads = 256;

struct EmbedParams {
  const int* ids;
  const int* sampled;
  const int* image_index;
  Elements table, images, out;
  int64_t n;
};

TESSERA_KERNEL(kThreads) embed_kernel(EmbedParams p) {
  const int64_t row = block_x();
  const int64_t image = p.image_index ? p.image_index[row] : -1;
  int64_t id = image < 0 ? p.ids[row] : 0;
  if (id < 0) id = p.sampled[-1 - id];
  for (int64_t i = thread_id(); i < p.n; i += kThreads)
    p.out.set(row, i, image >= 0 ? p.images.get(image, i) : p.table.get(id, i));
}

struct MoveParams {
  Elements from, to;
  const int* indices;
  int64_t n;
  bool gather;
};

TESSERA_KERNEL(kThreads) move_kernel(MoveParams p) {
  const int64_t row = block_x(), index = p.indices[row];
  if (index < 0) return;
  for (int64_t i = thread_id(); i < p.n; i += kThreads)
    p.to.set(p.gather ? row : index, i, p.from.get(p.gather ? index : row, i));
}

struct CopyParams {
  unsigned char* base;
  int64_t block_bytes;
  const int* pairs;
};

TESSERA_KERNEL(kThreads) copy_kernel(CopyParams p) {
  const int64_t from = p.pairs[2 * block_x()], to = p.pairs[2 * block_x() + 1];
  const auto* source = reinterpret_cast<const uint16_t*>(p.base + from * p.block_bytes);
  auto* target = reinterpret_cast<uint16_t*>(p.base + to * p.block_bytes);
  for (int64_t i = thread_id(); i < p.block_bytes / 2; i += kThreads) target[i] = source[i];
}

}  // namespace

void embed(Stream& stream, const EmbedArgs& args) {
  const LinearSpec& spec = args.table->spec();
  const EmbedParams p{.ids = args.ids.ptr<int>(),
                      .sampled = args.sampled_ids.ptr<int>(),
                      .image_index = args.image_index.ptr<int>(),
                      .table = {args.table->data(), packed_shape(spec).cols, spec.dtype},
                      .images = elements(args.image_rows),
                      .out = elements(args.out),
                      .n = args.out.row_elements()};
  launch(stream, "plain_embed", {static_cast<unsigned>(args.out.rows())}, kThreads, 0, embed_kernel, p);
}

void gather_rows(Stream& stream, const GatherRowsArgs& args) {
  const MoveParams p{elements(args.x), elements(args.out), args.indices.ptr<int>(), args.out.row_elements(), true};
  launch(stream, "plain_gather_rows", {static_cast<unsigned>(args.out.rows())}, kThreads, 0, move_kernel, p);
}

void scatter_rows(Stream& stream, const ScatterRowsArgs& args) {
  const MoveParams p{elements(args.x), elements(args.out), args.indices.ptr<int>(), args.out.row_elements(), false};
  launch(stream, "plain_scatter_rows", {static_cast<unsigned>(args.x.rows())}, kThreads, 0, move_kernel, p);
}

void copy_blocks(Stream& stream, const CopyBlocksArgs& args) {
  const CopyParams p{static_cast<unsigned char*>(args.base), static_cast<int64_t>(args.block_bytes),
                     args.pairs.ptr<int>()};
  launch(stream, "plain_copy_blocks", {static_cast<unsigned>(args.pairs.rows())}, kThreads, 0, copy_kernel, p);
}

}  // namespace tessera::cuda::plain
