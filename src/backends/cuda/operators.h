#pragma once

#include "ops/kernel_table.h"
#include "ops/linear.h"

namespace tessera::cuda {

// The doors of the operators that have more than one kernel: each takes what the device's plan chose, or the plain kernel
// where a shape or alignment is not the chosen one's.

void norm(Stream& stream, const NormArgs& args);
void linear(Stream& stream, const LinearArgs& args);
void norm_linear(Stream& stream, const LinearArgs& args);
void project_qkv(Stream& stream, const ProjectQkvArgs& args);
void begin_step(Stream& stream, const BeginStepArgs& args);
bool decoder_layer(Stream& stream, const DecoderLayerArgs& args);
void epilogue(Stream& stream, const EpilogueArgs& args);
void patch_embed(Stream& stream, const PatchEmbedArgs& args);
void pixel_shuffle(Stream& stream, const PixelShuffleArgs& args);
void scatter_rows(Stream& stream, const ScatterRowsArgs& args);
void qkv_to_cache(Stream& stream, const QkvToCacheArgs& args);
void paged_attention(Stream& stream, const PagedAttentionArgs& args);
void tile_attention(Stream& stream, const TileAttentionArgs& args);
void sample(Stream& stream, const SampleArgs& args);

/// The norm of finished rows; nothing when next.out is absent.
void following_norm(Stream& stream, const Tensor& out, const NormArgs& next);

}  // namespace tessera::cuda
