#pragma once

#include <bit>

#include "backends/cuda/plain/kv_layout.h"
#include "ops/attention.h"

namespace tessera::cuda {

/// What decode attention's kernels work on: a query token a sequence, the query heads of a key head together, keys in splits.
struct DecodeParams {
  const void* q;
  void* out;
  int64_t q_stride, out_stride;
  int group, splits;  ///< query heads a key head; of its keys
  float scale_log2;
  const int* query_offsets;
  const int* kv_lengths;
  const int* block_tables;
  int64_t table_stride;
  int block_shift;  ///< blocks are a power of two of tokens
  KvElements kv;
};

inline DecodeParams decode_params(const PagedAttentionArgs& args, int splits) {
  return {.q = args.q.data,
          .out = args.out.data,
          .q_stride = args.q.row_stride,
          .out_stride = args.out.row_stride,
          .group = args.heads / args.kv_heads,
          .splits = splits,
          .scale_log2 = args.scale * 1.4426950408889634f,
          .query_offsets = args.query_offsets.ptr<int>(),
          .kv_lengths = args.kv_lengths.ptr<int>(),
          .block_tables = args.block_tables.ptr<int>(),
          .table_stride = args.block_tables.row_stride,
          .block_shift = std::countr_zero(static_cast<unsigned>(args.kv.layout.block_size)),
          .kv = kv_elements(args.kv)};
}

}  // namespace tessera::cuda
