#include "vision/tile.h"

#include <cstring>
#include <string>

#include "core/check.h"
#include "vision/resample.h"

namespace tessera {
namespace {

constexpr int kMaxImageSize = 2048;  // 129 tiles of it are 1.6 GB
constexpr int kMaxTiles = 128;

Status check_options(const Image& image, const TilingOptions& options) {
  if (image.width < 1 || image.height < 1) return invalid_input("[tile] the picture is empty");
  if (options.image_size < 1 || options.image_size > kMaxImageSize)
    return invalid_input("[tile] image_size is " + std::to_string(options.image_size) + "; expected 1.." +
                         std::to_string(kMaxImageSize));
  if (options.min_tiles < 1 || options.max_tiles > kMaxTiles || options.min_tiles > options.max_tiles)
    return invalid_input("[tile] min_tiles is " + std::to_string(options.min_tiles) + " and max_tiles " +
                         std::to_string(options.max_tiles) +
                         "; expected 1 <= min_tiles <= max_tiles <= " + std::to_string(kMaxTiles));
  return {};
}

// A target that is cut into `columns` tiles a row, the first of which is tile `first_tile` of `tiled`.
ResampleTarget tiles_target(TiledImage& tiled, int columns, int rows, int first_tile) {
  const size_t side = tiled.image_size;
  uint8_t* const base = tiled.tiles.data() + first_tile * tiled.tile_bytes();
  return {.width = columns * tiled.image_size,
          .height = rows * tiled.image_size,
          .row = [=](int y, const uint8_t* planar, size_t stride) {
            uint8_t* out = base + (y / side) * columns * side * side * 3 + (y % side) * side;
            for (int column = 0; column < columns; ++column, out += side * side * 3)
              for (size_t c = 0; c < 3; ++c)
                std::memcpy(out + c * side * side, planar + c * stride + column * side, side);
          }};
}

}  // namespace

Result<TiledImage> cut_tiles(const Image& image, const TilingOptions& options, ResizeIsa isa) {
  TESSERA_RETURN_IF_ERROR(check_options(image, options));
  TiledImage tiled{.width = image.width,
                   .height = image.height,
                   .grid = choose_tile_grid(image.width, image.height, options),
                   .image_size = options.image_size};
  tiled.tiles.resize(tiled.grid.tiles * tiled.tile_bytes());
  std::vector<ResampleTarget> targets;
  targets.push_back(tiles_target(tiled, tiled.grid.columns, tiled.grid.rows, 0));
  if (tiled.grid.has_thumbnail()) targets.push_back(tiles_target(tiled, 1, 1, tiled.grid.tiles - 1));
  resample(image, targets, isa);
  return tiled;
}

Image interleaved_tile(const TiledImage& tiled, int index) {
  TESSERA_CHECK(index >= 0 && index < tiled.grid.tiles, "no such tile");
  const int side = tiled.image_size;
  const size_t plane = static_cast<size_t>(side) * side;
  const uint8_t* planar = tiled.tile(index).data();
  Image out{.width = side, .height = side};
  out.rgb.resize(plane * 3);
  for (size_t i = 0; i < plane; ++i)
    for (size_t c = 0; c < 3; ++c) out.rgb[3 * i + c] = planar[c * plane + i];
  return out;
}

}  // namespace tessera
