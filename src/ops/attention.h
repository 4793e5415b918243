#pragma once

#include "ops/context.h"
#include "ops/kv_cache_view.h"
#include "ops/linear.h"

namespace tessera {

/// The host's knowledge of a step that decides control flow and kernel choice. `tokens` and `sequences` may be larger
/// than what is really there (a bucket that a captured graph serves): surplus tokens have slot -1, surplus sequences
/// have no tokens.
struct StepShape {
  int64_t tokens = 0;
  int64_t sequences = 0;
  int64_t decodes = 0;        ///< the first `decodes` sequences have exactly one query token
  int64_t max_query = 1;      ///< longest query of any sequence
  int64_t max_kv = 0;         ///< upper bound of kv_lengths
  int64_t logit_rows = 0;     ///< rows that need logits
  bool logits_in_order = false;  ///< these are all tokens, one after another
};

/// Per-head q/k RMS norm (optional), rotation of q and k, and the KV write, in one operator over packed rows.
struct QkvToCacheArgs {
  Tensor qkv;      ///< [tokens, (heads + 2 * kv_heads) * head_dim], q | k | v; q is normed and rotated in place
  Tensor q_norm;   ///< f32 [head_dim] or absent
  Tensor k_norm;   ///< f32 [head_dim] or absent
  float norm_eps = 1e-6f;
  Tensor cos_sin;  ///< f32 [tokens, head_dim], from rope_angles
  Tensor slots;    ///< i32 [tokens]: block * block_size + offset in the block; -1: write nothing
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  KvView kv;
};

void qkv_to_cache(const OpContext& ctx, const QkvToCacheArgs& args);

/// The way into attention as one operator: the product that makes q | k | v, then qkv_to_cache of it. Of the rows only q
/// is promised afterwards.
struct ProjectQkvArgs {
  LinearArgs product;    ///< its out is cache.qkv
  QkvToCacheArgs cache;
};

void project_qkv(const OpContext& ctx, const ProjectQkvArgs& args);
/// The checks of project_qkv, for the operators that it is part of.
void check(const ProjectQkvArgs& args);

/// Causal attention of a ragged batch over a paged cache. Query i of a sequence with q queries and n keys sees keys
/// [0, n - q + i]. Softmax in f32. Keys are visited in fixed blocks counted from position 0 (CPU: bitwise the same
/// whatever the chunking). A GPU may read ahead of the operators before it: offsets, lengths and tables, and of the first
/// `decodes` sequences all keys but the last, must be older than the step.
struct PagedAttentionArgs {
  StepShape shape;
  Tensor q;              ///< [tokens, heads * head_dim]; rows may be strided (packed qkv)
  Tensor query_offsets;  ///< i32 [sequences + 1]
  Tensor kv_lengths;     ///< i32 [sequences], this step's tokens included
  Tensor block_tables;   ///< i32 [sequences, max_blocks]
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  float scale = 0;
  KvView kv;
  Tensor out;            ///< [tokens, heads * head_dim]
};

void paged_attention(const OpContext& ctx, const PagedAttentionArgs& args);
void check(const PagedAttentionArgs& args);

/// Bidirectional attention inside equal segments (the tiles of a vision pass), over packed q | k | v rows.
struct TileAttentionArgs {
  Tensor qkv;  ///< [tiles * tokens, 3 * heads * head_dim]
  int64_t tiles = 0;
  int64_t tokens = 0;  ///< per tile (1025)
  int heads = 0;
  int head_dim = 0;
  float scale = 0;
  Tensor out;  ///< [tiles * tokens, heads * head_dim]
};

void tile_attention(const OpContext& ctx, const TileAttentionArgs& args);

}  // namespace tessera
