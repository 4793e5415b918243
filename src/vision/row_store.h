#pragma once

#include <algorithm>
#include <utility>

#include "vision/image.h"

namespace tessera {

/// A picture that is filled row by row and takes memory as rows arrive: what a header claims costs nothing.
class RowStore {
 public:
  RowStore(int width, int height) {
    image_.width = width;
    image_.height = height;
    total_ = image_.row_bytes() * static_cast<size_t>(height);
  }

  /// Takes the memory of the whole picture at once: where the data is known to hold every row.
  void expect_all() { image_.rgb.reserve(total_); }

  /// Room for `count` more rows, zeroed; valid until the next call. Requires: that many are still missing.
  uint8_t* append(int count = 1) {
    const size_t begin = image_.rgb.size(), end = begin + image_.row_bytes() * static_cast<size_t>(count);
    if (end > image_.rgb.capacity()) {
      constexpr size_t kFirst = size_t{4} << 20;  // small pictures grow once
      image_.rgb.reserve(std::min(total_, std::max({end, 2 * image_.rgb.capacity(), kFirst})));
    }
    image_.rgb.resize(end);
    return image_.rgb.data() + begin;
  }

  int rows() const { return static_cast<int>(image_.rgb.size() / image_.row_bytes()); }
  bool complete() const { return image_.rgb.size() == total_; }
  Image take() { return std::move(image_); }

 private:
  Image image_;
  size_t total_ = 0;
};

}  // namespace tessera
