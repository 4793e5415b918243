#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tessera {

/// A decoded picture: 8-bit RGB, interleaved, rows from the top, no padding. A plain value; free of threads.
struct Image {
  int width = 0;             // pixels
  int height = 0;            // pixels
  std::vector<uint8_t> rgb;  // [height, width, 3]

  size_t row_bytes() const { return static_cast<size_t>(width) * 3; }
  const uint8_t* row(int y) const { return rgb.data() + static_cast<size_t>(y) * row_bytes(); }
  uint8_t* row(int y) { return rgb.data() + static_cast<size_t>(y) * row_bytes(); }
};

}  // namespace tessera
