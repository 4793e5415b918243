#include "ops/embedding.h"

#include <cstring>

#include "backends/cpu/kernels.h"
#include "backends/cpu/packed_weight.h"

namespace tessera::cpu {
namespace {

void copy_row(CpuStream& stream, const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row, float* row) {
  const int64_t n = from.row_elements();
  const void* source = from.slice(from_row, 1).data;
  void* target = to.slice(to_row, 1).data;
  if (from.dtype == to.dtype) {
    std::memcpy(target, source, static_cast<size_t>(n) * size_of(from.dtype));
    return;
  }
  stream.leaf.load_row(source, element_of(from.dtype), n, row);
  stream.leaf.store_row(row, n, 1.0f, target, element_of(to.dtype));
}

/// Rows over the threads, each with an f32 row of scratch.
template <class Body>
void each_row(CpuStream& stream, int64_t rows, int64_t n, const Body& body) {
  parallel_rows(stream, rows, 16, [&](int64_t begin, int64_t end, int thread) {
    Scratch& scratch = stream.scratch_of(thread);
    scratch.reset();
    float* row = scratch.take<float>(n);
    for (int64_t r = begin; r < end; ++r) body(r, row);
  });
}

}  // namespace

void embed(Stream& s, const EmbedArgs& args) {
  CpuStream& stream = cpu_stream(s);
  const auto* ids = args.ids.ptr<const int32_t>();
  const auto* sampled = args.sampled_ids ? args.sampled_ids.ptr<const int32_t>() : nullptr;
  const auto* images = args.image_index.ptr<const int32_t>();
  const int64_t n = args.out.row_elements(), vocab = args.table->spec().rows;
  each_row(stream, args.out.rows(), n, [&](int64_t t, float* row) {
    if (images[t] >= 0) return copy_row(stream, args.image_rows, images[t], args.out, t, row);
    const int32_t id = sampled && ids[t] < 0 ? sampled[-1 - ids[t]] : ids[t];
    TESSERA_CHECK(id >= 0 && id < vocab, "[embed] id " + std::to_string(id) + " of " + std::to_string(vocab));
    read_table_row(stream.leaf, *args.table, id, row);
    stream.leaf.store_row(row, n, 1.0f, args.out.slice(t, 1).data, element_of(args.out.dtype));
  });
}

void gather_rows(Stream& s, const GatherRowsArgs& args) {
  CpuStream& stream = cpu_stream(s);
  const auto* indices = args.indices.ptr<const int32_t>();
  each_row(stream, args.out.rows(), args.x.row_elements(), [&](int64_t r, float* row) {
    if (indices[r] >= 0) copy_row(stream, args.x, indices[r], args.out, r, row);
  });
}

void scatter_rows(Stream& s, const ScatterRowsArgs& args) {
  CpuStream& stream = cpu_stream(s);
  const auto* indices = args.indices.ptr<const int32_t>();
  each_row(stream, args.x.rows(), args.x.row_elements(), [&](int64_t r, float* row) {
    if (indices[r] >= 0) copy_row(stream, args.x, r, args.out, indices[r], row);
  });
}

void copy_blocks(Stream& s, const CopyBlocksArgs& args) {
  CpuStream& stream = cpu_stream(s);
  char* base = static_cast<char*>(args.base);
  stream.pool.parallel_for(args.pairs.rows(), [&](int64_t i, int) {
    const auto* pair = args.pairs.row<const int32_t>(i);
    std::memcpy(base + static_cast<size_t>(pair[1]) * args.block_bytes,
                base + static_cast<size_t>(pair[0]) * args.block_bytes, args.block_bytes);
  });
}

}  // namespace tessera::cpu
