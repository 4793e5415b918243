#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>

#include "vision/byte_reader.h"

namespace tessera {

/// 256 colours. What a file's palette lacks is black.
class Palette {
 public:
  /// Gray: index i is (i, i, i).
  static Palette gray() {
    Palette palette;
    for (int i = 0; i < 256; ++i) palette.colours_[i].fill(static_cast<uint8_t>(i));
    return palette;
  }
  void set(int index, uint8_t red, uint8_t green, uint8_t blue) { colours_[index] = {red, green, blue}; }

  void to_rgb(std::span<const uint8_t> indices, uint8_t* rgb) const {
    for (size_t i = 0; i < indices.size(); ++i) std::memcpy(rgb + 3 * i, colours_[indices[i]].data(), 3);
  }

 private:
  std::array<std::array<uint8_t, 3>, 256> colours_{};
};

}  // namespace tessera
