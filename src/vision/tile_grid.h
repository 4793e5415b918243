#pragma once

#include <cstdint>

namespace tessera {

/// How a picture is cut; the names of InternVL's configuration in brackets.
struct TilingOptions {
  int image_size = 448;       // side of a tile, pixels (force_image_size)
  int min_tiles = 1;          // least tiles of the grid, thumbnail not counted (min_dynamic_patch)
  int max_tiles = 12;         // most tiles of the grid, thumbnail not counted (max_dynamic_patch)
  bool use_thumbnail = true;  // a thumbnail follows when the grid has more than one tile (use_thumbnail)
  bool dynamic = true;        // false: one tile, the picture resized directly (dynamic_image_size)
};

/// A grid of tiles, read row by row.
struct TileGrid {
  int columns = 1;
  int rows = 1;
  int tiles = 1;  // columns * rows, plus 1 for the thumbnail where there is one

  bool has_thumbnail() const { return tiles != columns * rows; }
};

/// The grid that the reference (`dynamic_preprocess` of InternVL) picks for a picture of width x height:
/// among all grids of min_tiles..max_tiles tiles the one whose aspect ratio is nearest in IEEE doubles; among
/// equal ratios a larger one only if the picture's area exceeds half of that grid's. A pure function; its
/// time grows as max_tiles * log(max_tiles). Thread-safe. Requires: width, height, image_size >= 1; 1 <=
/// min_tiles <= max_tiles.
TileGrid choose_tile_grid(int64_t width, int64_t height, const TilingOptions& options);

}  // namespace tessera
