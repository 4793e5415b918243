#include <algorithm>
#include <cstring>

#include "vision/resample.h"
#include "vision/resize_axis.h"

namespace tessera {
namespace {

constexpr int32_t kHalf = 1 << (kResizeFractionBits - 1);

uint8_t to_pixel(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kResizeFractionBits, 0, 255));
}

Image horizontal_pass(const Image& image, int width) {
  const ResizeAxis axis = make_resize_axis(image.width, width);
  Image out{.width = width, .height = image.height};
  out.rgb.resize(out.row_bytes() * out.height);
  for (int y = 0; y < out.height; ++y)
    for (int x = 0; x < width; ++x) {
      const ResizeWindow& window = axis.windows[x];
      const int32_t* weights = axis.weights.data() + window.weights;
      const uint8_t* pixel = image.row(y) + size_t{3} * window.first;
      int32_t sum[3] = {kHalf, kHalf, kHalf};
      for (int i = 0; i < window.count; ++i, pixel += 3)
        for (int c = 0; c < 3; ++c) sum[c] += pixel[c] * weights[i];
      for (int c = 0; c < 3; ++c) out.row(y)[3 * x + c] = to_pixel(sum[c]);
    }
  return out;
}

Image vertical_pass(const Image& image, int height) {
  const ResizeAxis axis = make_resize_axis(image.height, height);
  Image out{.width = image.width, .height = height};
  out.rgb.resize(out.row_bytes() * height);
  std::vector<int32_t> sums(image.row_bytes());
  for (int y = 0; y < height; ++y) {
    const ResizeWindow& window = axis.windows[y];
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int i = 0; i < window.count; ++i) {  // row by row, so that memory is read in order
      const int32_t weight = axis.weights[window.weights + i];
      const uint8_t* row = image.row(window.first + i);
      for (size_t b = 0; b < sums.size(); ++b) sums[b] += row[b] * weight;
    }
    std::transform(sums.begin(), sums.end(), out.row(y), to_pixel);
  }
  return out;
}

}  // namespace

Image resize_plain(const Image& image, int width, int height) {
  if (image.width == width && image.height == height) return image;
  if (image.width == width) return vertical_pass(image, height);
  if (image.height == height) return horizontal_pass(image, width);
  if (vertical_pass_first(image.width, image.height, width, height))
    return horizontal_pass(vertical_pass(image, height), width);
  return vertical_pass(horizontal_pass(image, width), height);
}

}  // namespace tessera
