#pragma once

#include "backends/cpu/leaf.h"

// How a product is cut into register tiles; shared by the instruction sets, compiled for each (see vec_avx512.h).
namespace tessera::cpu {
namespace {

/// One register tile: `r` rows of packed a by up to `panels` panels. `next` are the panels that are read after these, or
/// these again: a product with one row waits for memory, and asks for them before it comes to their beginning.
using TileFunction = void (*)(const void* a, int64_t k, const void* const* panels, const void* const* next,
                              int64_t k_stride, float* c, int64_t ldc, bool accumulate);

/// A set's tiles: functions[r][p - 1] multiplies r rows by p panels; `side_by_side[r]` is the most panels for r rows.
template <int Group, int MaxPanels>
struct TileSet {
  TileFunction functions[Group + 1][MaxPanels];
  int side_by_side[Group + 1];
};

/// Packed a lies in groups of `Group` rows, the last one shorter: a group of r rows is [k][r] (bf16 forms: [k / 2][r][2]).
/// Panels are the outer loop: a panel is used for all rows while it is in the nearest cache.
template <int Group, int MaxPanels>
inline void multiply_tiles(const MultiplyArgs& args, int64_t a_element, const TileSet<Group, MaxPanels>& tiles) {
  const int rows_of_tile = args.rows < Group ? static_cast<int>(args.rows) : Group;
  const int wide = tiles.side_by_side[rows_of_tile];
  for (int p = 0; p < args.panel_count; p += wide) {
    const int panels = args.panel_count - p < wide ? args.panel_count - p : wide;
    const bool more = p + panels + panels <= args.panel_count;
    for (int64_t row = 0; row < args.rows; row += Group) {
      const int r = static_cast<int>(args.rows - row < Group ? args.rows - row : Group);
      const char* a = static_cast<const char*>(args.a) + row * args.k * a_element;
      float* c = args.c + row * args.ldc + p * kPanel;
      // A last group of few rows may take fewer panels at a time than it could: the same sums in any case.
      tiles.functions[r][panels - 1](a, args.k, args.panels + p, args.panels + p + (more ? panels : 0), args.k_stride, c,
                                     args.ldc, args.accumulate);
    }
  }
}

}  // namespace
}  // namespace tessera::cpu
