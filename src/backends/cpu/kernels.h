#pragma once

#include "ops/kernel_table.h"
#include "ops/norm.h"

/// The CPU's entries of the kernel table, one source file each. All arguments have passed their door's checks.
namespace tessera::cpu {

void norm(Stream&, const NormArgs&);
/// The norm that a coarse operator has behind its output; none where `next` has no output of its own.
void next_norm(Stream&, const NormArgs& next, const Tensor& x);
void linear(Stream&, const LinearArgs&);
void epilogue(Stream&, const EpilogueArgs&);
void rope_angles(Stream&, const RopeAnglesArgs&);
void qkv_to_cache(Stream&, const QkvToCacheArgs&);
void paged_attention(Stream&, const PagedAttentionArgs&);
void tile_attention(Stream&, const TileAttentionArgs&);
void patch_embed(Stream&, const PatchEmbedArgs&);
void pixel_shuffle(Stream&, const PixelShuffleArgs&);
void embed(Stream&, const EmbedArgs&);
void gather_rows(Stream&, const GatherRowsArgs&);
void scatter_rows(Stream&, const ScatterRowsArgs&);
void copy_blocks(Stream&, const CopyBlocksArgs&);
void moe(Stream&, const MoeArgs&);
void sample(Stream&, const SampleArgs&);

}  // namespace tessera::cpu
