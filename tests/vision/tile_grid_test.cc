#include "vision/tile_grid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <sstream>
#include <vector>

#include "core/file.h"
#include "tests/support/fixtures.h"

namespace tessera {
namespace {

TEST(TileGrid, EveryRowOfTheReferencesTable) {
  const auto table = read_file(testing::fixture_path("tiling/grids.tsv"), 1 << 24);
  ASSERT_TRUE(table.ok()) << table.status().message();
  std::istringstream lines(*table);
  std::string line;
  std::getline(lines, line);  // the header
  int rows = 0;
  while (std::getline(lines, line)) {
    std::istringstream in(line);
    int64_t width, height;
    int thumbnail, columns, grid_rows, tiles;
    TilingOptions options;
    in >> width >> height >> options.image_size >> options.min_tiles >> options.max_tiles >> thumbnail >>
        columns >> grid_rows >> tiles;
    ASSERT_FALSE(in.fail()) << line;
    options.use_thumbnail = thumbnail != 0;
    const TileGrid grid = choose_tile_grid(width, height, options);
    ASSERT_EQ(std::vector({grid.columns, grid.rows, grid.tiles}), std::vector({columns, grid_rows, tiles}))
        << line;
    ++rows;
  }
  EXPECT_GE(rows, 100);
}

// The rule as it is written down: candidates in order, nearer wins, equally near wins if the picture is
// large.
TileGrid scan(int64_t width, int64_t height, const TilingOptions& options) {
  std::vector<TileGrid> candidates;
  for (int columns = 1; columns <= options.max_tiles; ++columns)
    for (int rows = 1; rows <= options.max_tiles; ++rows)
      if (columns * rows >= options.min_tiles && columns * rows <= options.max_tiles)
        candidates.push_back({.columns = columns, .rows = rows, .tiles = columns * rows});
  std::sort(candidates.begin(), candidates.end(), [](const TileGrid& a, const TileGrid& b) {
    return a.tiles != b.tiles ? a.tiles < b.tiles : a.columns < b.columns;
  });
  TileGrid best;
  double nearest = HUGE_VAL;
  const double ratio = static_cast<double>(width) / static_cast<double>(height);
  for (const TileGrid& c : candidates) {
    const double d = std::abs(ratio - static_cast<double>(c.columns) / c.rows);
    const double half = 0.5 * options.image_size * options.image_size * c.columns * c.rows;
    if (d < nearest || (d == nearest && static_cast<double>(width * height) > half)) best = c;
    nearest = std::min(nearest, d);
  }
  if (options.use_thumbnail && best.tiles != 1) ++best.tiles;
  return best;
}

TEST(TileGrid, EqualsTheScanOverSortedCandidates) {
  std::mt19937 random(7);
  for (int i = 0; i < 3000; ++i) {
    TilingOptions options{.image_size = i % 2 ? 448 : 224};
    options.max_tiles = 1 + static_cast<int>(random() % (i % 10 ? 24 : 128));
    options.min_tiles = i % 3 ? 1 : 1 + static_cast<int>(random() % options.max_tiles);
    const int64_t unit = i % 4 ? 1 : 56;  // multiples make equal ratios likely
    const int64_t width = unit * (1 + random() % 90), height = unit * (1 + random() % 90);
    const TileGrid a = choose_tile_grid(width, height, options), b = scan(width, height, options);
    ASSERT_EQ(std::vector({a.columns, a.rows, a.tiles}), std::vector({b.columns, b.rows, b.tiles}))
        << width << " x " << height << " tiles " << options.min_tiles << ".." << options.max_tiles;
  }
}

TEST(TileGrid, ThumbnailAndDynamicAreOptions) {
  EXPECT_EQ(choose_tile_grid(896, 448, {}).tiles, 3);
  EXPECT_EQ(choose_tile_grid(896, 448, {.use_thumbnail = false}).tiles, 2);
  EXPECT_EQ(choose_tile_grid(896, 448, {.dynamic = false}).tiles, 1);
  EXPECT_EQ(choose_tile_grid(448, 448, {}).tiles, 1);  // a single tile needs no thumbnail
  EXPECT_TRUE(choose_tile_grid(896, 448, {}).has_thumbnail());
}

TEST(TileGrid, HugeSidesAreExact) {
  const TileGrid grid = choose_tile_grid(INT32_MAX, INT32_MAX, {.image_size = INT32_MAX, .max_tiles = 4});
  EXPECT_EQ(grid.columns * grid.rows, 1);  // the area is not more than half of 2 x 2
  EXPECT_EQ(choose_tile_grid(1, INT32_MAX, {.max_tiles = 128}).rows, 128);
}

}  // namespace
}  // namespace tessera
