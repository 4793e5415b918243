#include "backends/cuda/backend.h"
#include "backends/cuda/operators.h"
#include "backends/cuda/plain/plain.h"

namespace tessera::cuda {

KernelTable cuda_kernel_table(const char* device) {
  KernelTable table = plain::kernel_table(device);
  table.norm = norm;
  table.linear = linear;
  table.norm_linear = norm_linear;
  table.project_qkv = project_qkv;
  table.begin_step = begin_step;
  table.decoder_layer = decoder_layer;
  table.epilogue = epilogue;
  table.patch_embed = patch_embed;
  table.pixel_shuffle = pixel_shuffle;
  table.scatter_rows = scatter_rows;
  table.qkv_to_cache = qkv_to_cache;
  table.paged_attention = paged_attention;
  table.tile_attention = tile_attention;
  table.sample = sample;
  return table;
}

}  // namespace tessera::cuda
