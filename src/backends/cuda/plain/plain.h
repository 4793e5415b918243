#pragma once

// The plain family: one kernel path for every operator that fits any device (at most 48 KB of shared memory, any warp
// size that is a power of two up to 64, any floating dtype). Arguments have passed the operators' doors; weights lie as
// cuda_choice/weight_layout.h says, KV blocks as kv_layout.h.

#include "ops/kernel_table.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace tessera::cuda::plain {

void norm(Stream& stream, const NormArgs& args);
/// The norm that follows a product, over the rows of `out`; nothing when next.out is absent.
void following_norm(Stream& stream, const Tensor& out, const NormArgs& next);
void linear(Stream& stream, const LinearArgs& args);
void epilogue(Stream& stream, const EpilogueArgs& args);
void rope_angles(Stream& stream, const RopeAnglesArgs& args);
void qkv_to_cache(Stream& stream, const QkvToCacheArgs& args);
void paged_attention(Stream& stream, const PagedAttentionArgs& args);
void tile_attention(Stream& stream, const TileAttentionArgs& args);
/// The parts of patch_embed around its product: normalised patches [rows, stride], and the class token's rows.
void cut_patches(Stream& stream, const PatchEmbedArgs& args, const Tensor& patches);
void class_rows(Stream& stream, const PatchEmbedArgs& args);
void patch_embed(Stream& stream, const PatchEmbedArgs& args);
void pixel_shuffle(Stream& stream, const PixelShuffleArgs& args);
void embed(Stream& stream, const EmbedArgs& args);
void gather_rows(Stream& stream, const GatherRowsArgs& args);
void scatter_rows(Stream& stream, const ScatterRowsArgs& args);
void copy_blocks(Stream& stream, const CopyBlocksArgs& args);
void moe(Stream& stream, const MoeArgs& args);
void sample(Stream& stream, const SampleArgs& args);

/// All of them.
KernelTable kernel_table(const char* device);

}  // namespace tessera::cuda::plain
