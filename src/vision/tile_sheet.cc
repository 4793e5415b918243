#include "vision/tile_sheet.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "vision/bitmap_font.h"
#include "vision/resize.h"

namespace tessera {
namespace {

constexpr Rgb kPaper{250, 249, 246}, kInk{34, 36, 40}, kFaint{128, 130, 134}, kAccent{196, 74, 38},
    kWhite{255, 255, 255};
constexpr int kMargin = 28;
constexpr int kPanelWidth = 272;
constexpr int kThumbnailSide = 224;
constexpr int kLongSide = 1152, kLeastCellWidth = 48,
              kLeastCellHeight = 36;  // of the picture as drawn, pixels

struct Rect {
  int x, y, width, height;
};

void fill(Image& image, Rect r, Rgb colour) {
  for (int y = std::max(r.y, 0); y < std::min(r.y + r.height, image.height); ++y)
    for (int x = std::max(r.x, 0); x < std::min(r.x + r.width, image.width); ++x)
      std::copy(colour.begin(), colour.end(), image.row(y) + size_t{3} * x);
}

void darken(Image& image, Rect r) {
  for (int y = std::max(r.y, 0); y < std::min(r.y + r.height, image.height); ++y)
    for (uint8_t* p = image.row(y) + size_t{3} * r.x; p < image.row(y) + size_t{3} * (r.x + r.width); ++p)
      *p = static_cast<uint8_t>(*p / 7);  // what is below still shows through
}

void paste(Image& image, const Image& piece, int x, int y) {
  for (int row = 0; row < piece.height; ++row)
    std::copy(piece.row(row), piece.row(row) + piece.row_bytes(), image.row(y + row) + size_t{3} * x);
}

// The drawn size: the picture's own, shrunk to kLongSide, and never so small that a tile's number has no room
// (a strip of one pixel's height is stretched).
Rect picture_rect(const TiledImage& tiled) {
  const double scale = std::min(1.0, static_cast<double>(kLongSide) / std::max(tiled.width, tiled.height));
  const int width = static_cast<int>(std::lround(tiled.width * scale));
  const int height = static_cast<int>(std::lround(tiled.height * scale));
  return {.x = kMargin,
          .y = kMargin,
          .width = std::max(width, kLeastCellWidth * tiled.grid.columns),
          .height = std::max(height, kLeastCellHeight * tiled.grid.rows)};
}

// Part `index` of `count` of a length; the parts cover it without gap.
int cut_at(int length, int index, int count) {
  return static_cast<int>(int64_t{length} * index / count);
}

Rect tile_rect(const Rect& picture, const TileGrid& grid, int index) {
  const int column = index % grid.columns, row = index / grid.columns;
  const int x = cut_at(picture.width, column, grid.columns), y = cut_at(picture.height, row, grid.rows);
  return {.x = picture.x + x,
          .y = picture.y + y,
          .width = cut_at(picture.width, column + 1, grid.columns) - x,
          .height = cut_at(picture.height, row + 1, grid.rows) - y};
}

// White on a dark edge, so that a cut shows on any picture.
void draw_cuts(Image& sheet, const Rect& picture, const TileGrid& grid) {
  constexpr int kLine = 2;
  for (const auto& [edge, colour] : {std::pair(1, kInk), std::pair(0, kWhite)}) {
    for (int c = 1; c < grid.columns; ++c)
      fill(sheet,
           {picture.x + cut_at(picture.width, c, grid.columns) - kLine / 2 - edge, picture.y,
            kLine + 2 * edge, picture.height},
           colour);
    for (int r = 1; r < grid.rows; ++r)
      fill(sheet,
           {picture.x, picture.y + cut_at(picture.height, r, grid.rows) - kLine / 2 - edge, picture.width,
            kLine + 2 * edge},
           colour);
  }
}

// The tile's number in its top left corner and, where there is room, its cost below.
void draw_badge(Image& sheet, const Rect& tile, int number, int tokens) {
  const std::string title = std::to_string(number), cost = std::to_string(tokens) + " tokens";
  const int title_scale = std::min(tile.width, tile.height) >= 96 ? 4 : 2;
  const int cost_scale = tile.width >= text_width(cost, 2) + 32 ? 2 : 1;
  const bool with_cost = tokens > 0 && tile.width >= text_width(cost, 1) + 20 && tile.height >= 70;
  const int pad = 3 * title_scale / 2, left = tile.x + 5, top = tile.y + 5;
  const int text = std::max(text_width(title, title_scale), with_cost ? text_width(cost, cost_scale) : 0);
  const int height = kGlyphHeight * title_scale + (with_cost ? kGlyphHeight * cost_scale + pad : 0);
  darken(sheet, {left, top, text + 2 * pad, height + 2 * pad});
  draw_text(sheet, left + pad, top + pad, title_scale, title, kWhite);
  if (with_cost)
    draw_text(sheet, left + pad, top + 2 * pad + kGlyphHeight * title_scale, cost_scale, cost, kWhite);
}

struct Line {
  std::string text;
  int scale;
  Rgb colour;
};

std::vector<Line> panel_lines(const TiledImage& tiled) {
  const int cost = tokens_per_tile(tiled.image_size), tiles = tiled.grid.tiles;
  std::vector<Line> lines;
  if (cost > 0) {
    lines.push_back({std::to_string(cost * tiles), 6, kAccent});
    lines.push_back({"tokens", 3, kInk});
    lines.push_back(
        {std::to_string(tiles) + (tiles == 1 ? " tile, " : " tiles, ") + std::to_string(cost) + " each", 2,
         kFaint});
  } else {
    lines.push_back({std::to_string(tiles), 6, kAccent});
    lines.push_back({tiles == 1 ? "tile" : "tiles", 3, kInk});
  }
  lines.push_back({"", 2, kInk});
  auto pair = [](int a, int b) { return std::to_string(a) + " x " + std::to_string(b); };
  lines.push_back({"picture " + pair(tiled.width, tiled.height), 2, kInk});
  lines.push_back({"grid    " + pair(tiled.grid.columns, tiled.grid.rows), 2, kInk});
  lines.push_back({"tile    " + pair(tiled.image_size, tiled.image_size), 2, kInk});
  lines.push_back({"", 2, kInk});
  return lines;
}

int line_height(const Line& line) {
  return (kGlyphHeight + 5) * line.scale;
}

}  // namespace

int tokens_per_tile(int image_size) {
  const int side = image_size / 28;
  return image_size % 28 == 0 ? side * side : 0;
}

Image draw_tile_sheet(const Image& image, const TiledImage& tiled) {
  const Rect picture = picture_rect(tiled);
  const std::vector<Line> lines = panel_lines(tiled);
  int panel_height = tiled.grid.has_thumbnail() ? kThumbnailSide : 0;
  for (const Line& line : lines) panel_height += line_height(line);

  Image sheet{.width = picture.width + kPanelWidth + 3 * kMargin,
              .height = std::max(picture.height, panel_height) + 2 * kMargin};
  sheet.rgb.resize(sheet.row_bytes() * static_cast<size_t>(sheet.height));
  fill(sheet, {0, 0, sheet.width, sheet.height}, kPaper);
  paste(sheet, resize_bicubic(image, picture.width, picture.height), picture.x, picture.y);
  draw_cuts(sheet, picture, tiled.grid);
  const int cost = tokens_per_tile(tiled.image_size);
  for (int t = 0; t < tiled.grid.columns * tiled.grid.rows; ++t)
    draw_badge(sheet, tile_rect(picture, tiled.grid, t), t + 1, cost);

  const int panel_x = picture.x + picture.width + kMargin;
  int y = kMargin;
  for (const Line& line : lines) {
    draw_text(sheet, panel_x, y, line.scale, line.text, line.colour);
    y += line_height(line);
  }
  if (tiled.grid.has_thumbnail()) {
    const Image thumbnail = interleaved_tile(tiled, tiled.grid.tiles - 1);
    paste(sheet, resize_bicubic(thumbnail, kThumbnailSide, kThumbnailSide), panel_x, y);
    draw_badge(sheet, {panel_x, y, kThumbnailSide, kThumbnailSide}, tiled.grid.tiles, cost);
  }
  return sheet;
}

}  // namespace tessera
