#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tessera {

/// The source pixels that one output pixel of an axis is a weighted sum of.
struct ResizeWindow {
  int first = 0;       // source pixel of the first weight
  int count = 0;       // source pixels
  size_t weights = 0;  // index of the first weight in ResizeAxis::weights
};

/// Fraction bits of a weight: 32 - 8 for the pixel - 2 for overshoot and sign.
inline constexpr int kResizeFractionBits = 32 - 8 - 2;

/// The windows and weights of Pillow's bicubic along one axis. `first` and `first + count` never decrease
/// from one output to the next. For in == out every window is the pixel itself with weight 1, which leaves
/// the pixels as they are: the pass that Pillow skips.
struct ResizeAxis {
  int in = 0;                         // pixels
  int out = 0;                        // pixels
  std::vector<ResizeWindow> windows;  // [out]
  std::vector<int32_t> weights;       // fixed point, kResizeFractionBits
};

/// Requires: in, out >= 1.
ResizeAxis make_resize_axis(int in, int out);

/// Whether Pillow 13 runs the vertical pass of a resize first.
bool vertical_pass_first(int width, int height, int target_width, int target_height);

}  // namespace tessera
