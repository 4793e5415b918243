// Pictures into tiles: the time of a 12-megapixel picture on each instruction set, and, with --serve, the
// half of bench/peers/pillow_resize.py that is ours.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "vision/decode.h"
#include "vision/tile.h"

namespace tessera {
namespace {

template <class Action>
double milliseconds(Action action) {
  const auto start = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

Image random_picture(int width, int height) {
  Image image{.width = width, .height = height};
  image.rgb.resize(image.row_bytes() * static_cast<size_t>(height));
  std::minstd_rand random(1);
  for (uint8_t& value : image.rgb) value = static_cast<uint8_t>(random() >> 8);
  return image;
}

void print_table() {
  const Image image = random_picture(4000, 3000);
  std::printf("4000 x 3000 to 13 tiles, one thread, ms\n%-8s %8s %8s %8s\n", "", "median", "min", "max");
  for (ResizeIsa isa : {ResizeIsa::kPlain, ResizeIsa::kAvx2, ResizeIsa::kAvx512}) {
    if (!resize_isa_available(isa)) continue;
    std::vector<double> times;
    for (int i = 0; i < 12; ++i) times.push_back(milliseconds([&] { (void)cut_tiles(image, {}, isa); }));
    times.erase(times.begin(), times.begin() + 2);  // warm-up
    std::sort(times.begin(), times.end());
    std::printf("%-8s %8.2f %8.2f %8.2f\n", resize_isa_name(isa), times[times.size() / 2], times.front(),
                times.back());
  }
}

Result<Image> decode(const std::string& jpeg) {
  return decode_image(std::as_bytes(std::span(jpeg)), {}, ExifOrientation::kIgnore);
}

// Commands on stdin: "load N" and N bytes answers "columns rows"; "tile", "decode", "whole" answer
// milliseconds.
int serve() {
  std::string jpeg;
  Image image;
  char line[64];
  while (std::fgets(line, sizeof line, stdin)) {
    size_t bytes = 0;
    if (std::sscanf(line, "load %zu", &bytes) == 1) {
      jpeg.resize(bytes);
      if (std::fread(jpeg.data(), 1, bytes, stdin) != bytes) return 1;
      image = decode(jpeg).value();
      const TileGrid grid = choose_tile_grid(image.width, image.height, {});
      std::printf("%d %d\n", grid.columns, grid.rows);
    } else if (std::strcmp(line, "tile\n") == 0) {
      std::printf("%.3f\n", milliseconds([&] { (void)cut_tiles(image, {}); }));
    } else if (std::strcmp(line, "decode\n") == 0) {
      std::printf("%.3f\n", milliseconds([&] { (void)decode(jpeg); }));
    } else if (std::strcmp(line, "whole\n") == 0) {
      std::printf("%.3f\n", milliseconds([&] { (void)cut_tiles(decode(jpeg).value(), {}); }));
    } else {
      return 1;
    }
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--serve") == 0) return tessera::serve();
  tessera::print_table();
  return 0;
}
