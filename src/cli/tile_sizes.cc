#include "cli/tile_sizes.h"

#include <array>
#include <charconv>
#include <climits>
#include <cstdint>

#include "vision/tile_grid.h"

namespace tessera::cli {
namespace {

struct Column {
  const char* name;
  int64_t minimum, maximum;
};
// Grids of more tiles than any model takes are still answered; the bound keeps a line's time below a second.
constexpr int64_t kMaxCount = 1 << 20;
constexpr std::array<Column, 6> kColumns{{{"width", 1, INT_MAX},
                                          {"height", 1, INT_MAX},
                                          {"image_size", 1, INT_MAX},
                                          {"min_num", 1, kMaxCount},
                                          {"max_num", 1, kMaxCount},
                                          {"use_thumbnail", 0, 1}}};

Status bad_value(const Column& column, std::string_view given) {
  std::string shown(given.substr(0, 40));
  for (char& c : shown)
    if (c < ' ' || c > '~') c = '?';  // a carriage return, say, would spoil the line
  return invalid_input(std::string(column.name) + " is \"" + shown + "\"; expected an integer, " +
                       std::to_string(column.minimum) + ".." + std::to_string(column.maximum));
}

Result<std::array<int64_t, 6>> parse_line(std::string_view line) {
  std::array<int64_t, 6> values{};
  for (size_t i = 0; i < kColumns.size(); ++i) {
    const size_t tab = line.find('\t');
    const bool last = i + 1 == kColumns.size();
    if (last != (tab == line.npos))
      return invalid_input(
          "expected 6 tab-separated integers: width, height, image_size, min_num, max_num, "
          "use_thumbnail");
    const std::string_view field = line.substr(0, tab);
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), values[i]);
    if (field.empty() || error != std::errc() || end != field.data() + field.size() ||
        values[i] < kColumns[i].minimum || values[i] > kColumns[i].maximum)
      return bad_value(kColumns[i], field);
    if (!last) line.remove_prefix(tab + 1);
  }
  if (values[3] > values[4])
    return invalid_input("min_num is " + std::to_string(values[3]) + ", above max_num, " +
                         std::to_string(values[4]));
  return values;
}

}  // namespace

Result<std::string> tile_sizes_table(std::string_view text) {
  std::string out;
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
    const auto values = parse_line(line);
    if (!values.ok()) return values.status().with_context("line " + std::to_string(number));
    const auto& v = *values;
    const TileGrid grid = choose_tile_grid(v[0], v[1],
                                           {.image_size = static_cast<int>(v[2]),
                                            .min_tiles = static_cast<int>(v[3]),
                                            .max_tiles = static_cast<int>(v[4]),
                                            .use_thumbnail = v[5] == 1});
    out.append(line);
    for (int value : {grid.columns, grid.rows, grid.tiles}) out.append("\t").append(std::to_string(value));
    out += '\n';
  }
  return out;
}

}  // namespace tessera::cli
