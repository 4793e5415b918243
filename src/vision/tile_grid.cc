#include "vision/tile_grid.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace tessera {
namespace {

// Calls visit(columns, rows, distance) for each candidate grid. The distance is computed in the reference's
// very order of roundings: two divisions, one subtraction.
template <class Visit>
void for_each_candidate(double aspect_ratio, const TilingOptions& options, Visit visit) {
  for (int columns = 1; columns <= options.max_tiles; ++columns) {
    const int first_row = (options.min_tiles + columns - 1) / columns;
    const int last_row = options.max_tiles / columns;
    for (int rows = std::max(first_row, 1); rows <= last_row; ++rows)
      visit(columns, rows, std::abs(aspect_ratio - static_cast<double>(columns) / rows));
  }
}

// True when the picture's area exceeds half of the grid's: `area > 0.5 * S * S * columns * rows` with the
// right side in doubles and the comparison exact, as Python compares an integer with a float.
bool fills_half(int64_t area, int image_size, int columns, int rows) {
  const double half = 0.5 * image_size * image_size * columns * rows;
  return half < 9.2e18 && area > static_cast<int64_t>(std::floor(half));
}

// The order in which the reference looks at candidates: by area, then by columns.
bool comes_before(int columns, int rows, const TileGrid& other) {
  const int64_t area = int64_t{columns} * rows;
  const int64_t other_area = int64_t{other.columns} * other.rows;
  return area != other_area ? area < other_area : columns < other.columns;
}

}  // namespace

TileGrid choose_tile_grid(int64_t width, int64_t height, const TilingOptions& options) {
  TESSERA_CHECK(width >= 1 && height >= 1 && width <= INT32_MAX && height <= INT32_MAX,
                "picture size out of range");
  TESSERA_CHECK(options.image_size >= 1, "image_size must be at least 1");
  TESSERA_CHECK(options.min_tiles >= 1 && options.min_tiles <= options.max_tiles, "tile limits out of order");
  if (!options.dynamic) return {};

  // The reference scans the candidates in order, takes a nearer one always and an equally near one if the
  // picture fills half of it. That comes to: of the nearest, the last in order that the picture fills half
  // of; when there is none, the first. So no sorting is needed.
  const double aspect_ratio = static_cast<double>(width) / static_cast<double>(height);
  double nearest = HUGE_VAL;
  for_each_candidate(aspect_ratio, options, [&](int, int, double d) { nearest = std::min(nearest, d); });

  TileGrid first{.columns = 0}, largest{.columns = 0};
  for_each_candidate(aspect_ratio, options, [&](int columns, int rows, double d) {
    if (d != nearest) return;
    if (first.columns == 0 || comes_before(columns, rows, first)) first = {.columns = columns, .rows = rows};
    if (!fills_half(width * height, options.image_size, columns, rows)) return;
    if (largest.columns == 0 || !comes_before(columns, rows, largest))
      largest = {.columns = columns, .rows = rows};
  });
  TileGrid grid = largest.columns != 0 ? largest : first;
  grid.tiles = grid.columns * grid.rows;
  if (options.use_thumbnail && grid.tiles != 1) ++grid.tiles;
  return grid;
}

}  // namespace tessera
