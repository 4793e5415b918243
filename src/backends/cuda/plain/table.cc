#include "backends/cuda/plain/plain.h"

namespace tessera::cuda::plain {

KernelTable kernel_table(const char* device) {
  KernelTable table;
  table.device = device;
  table.norm = norm;
  table.linear = linear;
  table.epilogue = epilogue;
  table.rope_angles = rope_angles;
  table.qkv_to_cache = qkv_to_cache;
  table.paged_attention = paged_attention;
  table.tile_attention = tile_attention;
  table.patch_embed = patch_embed;
  table.pixel_shuffle = pixel_shuffle;
  table.embed = embed;
  table.gather_rows = gather_rows;
  table.scatter_rows = scatter_rows;
  table.copy_blocks = copy_blocks;
  table.moe = moe;
  table.sample = sample;
  return table;
}

}  // namespace tessera::cuda::plain
