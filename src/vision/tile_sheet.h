#pragma once

#include "vision/image.h"
#include "vision/tile.h"

namespace tessera {

/// Tokens that the language model spends on one tile of side image_size: (image_size / 14 / 2)^2, for patches
/// of 14 pixels and a pixel shuffle of 2 x 2, which all released models have. 0 where image_size is no
/// multiple of 28.
int tokens_per_tile(int image_size);

/// One picture that explains the cutting: the original with the cuts and the tiles' numbers over it, beside
/// it size, grid, cost in tokens, and the thumbnail. Requires: `tiled` was cut from `image`.
Image draw_tile_sheet(const Image& image, const TiledImage& tiled);

}  // namespace tessera
