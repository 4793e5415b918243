#pragma once

#include "ops/context.h"
#include "ops/weight.h"

namespace tessera {

/// Input rows of a step: token embeddings, and image embeddings where image_index is not negative.
struct EmbedArgs {
  Tensor ids;                     ///< i32 [tokens]; the id of a row with an image is not looked at
  Tensor sampled_ids;             ///< i32 [rows] or absent: what an id of -1 - row stands for, sampled by the step before
  const Weight* table = nullptr;  ///< use kEmbedding or kTied, [vocab, hidden]
  Tensor image_rows;              ///< [rows, hidden], floating; may be absent when no index is >= 0
  Tensor image_index;             ///< i32 [tokens]: a row of image_rows, or -1
  Tensor out;                     ///< [tokens, hidden], residual dtype
};

void embed(const OpContext& ctx, const EmbedArgs& args);
/// The checks of embed, for the operator that it is part of.
void check(const EmbedArgs& args);

/// out[i] = x[indices[i]], converting the dtype; an index of -1 leaves the row as it is.
struct GatherRowsArgs {
  Tensor x;        ///< [m, n], floating
  Tensor indices;  ///< i32 [rows]
  Tensor out;      ///< [rows, n], floating
};

void gather_rows(const OpContext& ctx, const GatherRowsArgs& args);

/// out[indices[i]] = x[i]: rows of a vision pass into the embedding cache's rows.
struct ScatterRowsArgs {
  Tensor x;        ///< [rows, n], floating
  Tensor indices;  ///< i32 [rows]; -1: skipped
  Tensor out;      ///< [m, n], floating
};

void scatter_rows(const OpContext& ctx, const ScatterRowsArgs& args);

/// Whole KV blocks to other blocks, in one layer (a shared last block that is about to be written).
struct CopyBlocksArgs {
  void* base = nullptr;
  size_t block_bytes = 0;
  Tensor pairs;  ///< i32 [count, 2]: from, to
};

void copy_blocks(const OpContext& ctx, const CopyBlocksArgs& args);

}  // namespace tessera
