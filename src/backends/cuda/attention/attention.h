#pragma once

#include "backends/cuda/launch.h"
#include "ops/attention.h"

namespace tessera::cuda {

/// sm_80 flash attention in 48 KB, 16-bit, head dims 64 and 128.
void mma_tile_attention(Stream& stream, const TileAttentionArgs& args);
/// The same over the paged cache (blocks of a power of two of tokens, here and below): sequences [first_sequence, sequences) of the batch.
void mma_paged_attention(Stream& stream, const PagedAttentionArgs& args, int64_t first_sequence);
/// One query token a sequence, keys split over blocks, the query heads of a key head together: sequences [0, decodes).
/// Requires: 16-bit, head dim 64 or 128, at most 16 query heads a key head.
void split_decode_attention(Stream& stream, const PagedAttentionArgs& args);

/// The same on sm_90a, where splits are a cluster: at most 8 query heads a key head and cache blocks of at least 16 tokens; else
/// false, and nothing done.
bool ring_decode_attention(Stream& stream, const PagedAttentionArgs& args);

/// sm_90a, head dim 64: bulk tensor copies and wgmma.
void wgmma_tile_attention(Stream& stream, const TileAttentionArgs& args);
/// sm_90a, head dims 64 and 128, blocks of at least 8 tokens: sequences [first_sequence, sequences) of the batch.
void wgmma_paged_attention(Stream& stream, const PagedAttentionArgs& args, int64_t first_sequence);

/// Rotation and cache write 16 bytes at a time, behind the bias of the product that made q | k | v where one is given (f32, as long as
/// a row): whether it serves these, and it itself.
bool fast_cache_serves(Stream& stream, const QkvToCacheArgs& args, const Tensor& bias);
void fast_qkv_to_cache(Stream& stream, const QkvToCacheArgs& args, const Tensor& bias);

}  // namespace tessera::cuda
