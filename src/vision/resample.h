#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "vision/image.h"
#include "vision/resize.h"

namespace tessera {

/// One size that a picture is resampled to. `row` is called once for each row, from the top: `planar` holds
/// the row's three channels one after the other, the first pixels of each `channel_stride` bytes apart, and
/// is valid during the call.
struct ResampleTarget {
  int width = 0;
  int height = 0;
  std::function<void(int y, const uint8_t* planar, size_t channel_stride)> row;
};

/// Resamples `image` to each target, independently (each with its own pass order), reading the picture once
/// where their order allows. Rows are streamed: the picture between the passes is never whole in memory.
/// Requires: as resize_bicubic.
void resample(const Image& image, std::span<const ResampleTarget> targets, ResizeIsa isa);

/// The portable path of resize_bicubic, written to be compared with the formula line by line.
Image resize_plain(const Image& image, int width, int height);

}  // namespace tessera
