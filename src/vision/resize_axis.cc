#include "vision/resize_axis.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace tessera {
namespace {

// Keys' cubic with a = -0.5, in Pillow's order of operations.
double bicubic(double x) {
  constexpr double a = -0.5;
  const double t = std::abs(x);
  if (t < 1.0) return ((a + 2.0) * t - (a + 3.0)) * t * t + 1;
  if (t < 2.0) return (((t - 5) * t + 8) * t - 4) * a;
  return 0.0;
}

int32_t to_fixed_point(double weight) {
  constexpr double one = 1 << kResizeFractionBits;
  return static_cast<int32_t>(weight < 0 ? weight * one - 0.5 : weight * one + 0.5);
}

}  // namespace

ResizeAxis make_resize_axis(int in, int out) {
  TESSERA_CHECK(in >= 1 && out >= 1, "an axis needs at least one pixel");
  ResizeAxis axis{.in = in, .out = out};
  axis.windows.reserve(out);
  if (in == out) {
    for (int o = 0; o < out; ++o) axis.windows.push_back({.first = o, .count = 1, .weights = 0});
    axis.weights.assign(1, 1 << kResizeFractionBits);
    return axis;
  }
  const double scale = static_cast<double>(in) / out;
  const double filter_scale = std::max(scale, 1.0);
  const double support = 2.0 * filter_scale;
  const double inverse = 1.0 / filter_scale;
  std::vector<double> w;
  for (int o = 0; o < out; ++o) {
    const double center = (o + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - support + 0.5));
    const int last = std::min(in, static_cast<int>(center + support + 0.5));
    w.clear();
    double sum = 0.0;
    for (int x = first; x < last; ++x) {
      w.push_back(bicubic((x - center + 0.5) * inverse));
      sum += w.back();
    }
    axis.windows.push_back({.first = first, .count = last - first, .weights = axis.weights.size()});
    for (double weight : w) axis.weights.push_back(to_fixed_point(sum != 0.0 ? weight / sum : weight));
  }
  return axis;
}

bool vertical_pass_first(int width, int height, int target_width, int target_height) {
  return height > target_height && int64_t{height} - target_height > 2 * (int64_t{width} - target_width);
}

}  // namespace tessera
