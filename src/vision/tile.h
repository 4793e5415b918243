#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"
#include "vision/image.h"
#include "vision/resize.h"
#include "vision/tile_grid.h"

namespace tessera {

/// What the vision model gets of one picture. Values are plain 8-bit RGB; (v / 255 - mean) / std is computed
/// on the device that encodes them.
struct TiledImage {
  int width = 0;  // the picture's size before cutting, pixels
  int height = 0;
  TileGrid grid;
  int image_size = 0;          // S, side of a tile
  std::vector<uint8_t> tiles;  // [grid.tiles, 3, S, S]: planar; row by row of the grid, the thumbnail last

  size_t tile_bytes() const { return static_cast<size_t>(image_size) * image_size * 3; }
  std::span<const uint8_t> tile(int index) const {
    return std::span(tiles).subspan(index * tile_bytes(), tile_bytes());
  }
};

/// Cuts `image` as the reference does: resized to the chosen grid and cut row by row, and the original
/// resized to S x S as thumbnail. Thread-safe; memory beside the result is a few rows. Errors
/// (kInvalidInput): an empty picture, options out of range (image_size 1..2048, tiles 1..128, their minimum
/// above their maximum).
Result<TiledImage> cut_tiles(const Image& image, const TilingOptions& options,
                             ResizeIsa isa = ResizeIsa::kAuto);

/// Tile `index` as an S x S interleaved picture. Requires: 0 <= index < tiled.grid.tiles.
Image interleaved_tile(const TiledImage& tiled, int index);

}  // namespace tessera
