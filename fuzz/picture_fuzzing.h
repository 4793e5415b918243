#pragma once

#include <cstdlib>
#include <span>

#include "vision/decode.h"
#include "vision/tile.h"

namespace tessera {

/// Decodes `data` if it is of one of `formats`, under small limits, turned and not, and cuts what comes out.
/// A decoded picture has the size that the header promised, and exactly the bytes of that size.
inline int fuzz_picture(std::span<const uint8_t> data, std::initializer_list<ImageFormat> formats) {
  constexpr DecodeLimits kLimits{.max_pixels = 1 << 20, .max_side = 1 << 16, .max_bytes = 1 << 20};
  const std::span<const std::byte> bytes = std::as_bytes(data);
  const auto header = probe_image(bytes, kLimits);
  if (!header.ok()) return 0;
  bool wanted = false;
  for (ImageFormat format : formats) wanted = wanted || format == header->format;
  if (!wanted) return -1;  // not kept in the corpus
  const auto image = decode_image(bytes, kLimits, ExifOrientation::kIgnore);
  if (!image.ok()) return 0;
  if (image->width != header->width || image->height != header->height ||
      image->rgb.size() != image->row_bytes() * static_cast<size_t>(image->height))
    std::abort();
  const auto turned = decode_image(bytes, kLimits, ExifOrientation::kApply);
  if (!turned.ok() || turned->rgb.size() != image->rgb.size()) std::abort();
  if (!cut_tiles(*image, {.image_size = 14, .max_tiles = 6}).ok()) std::abort();
  return 0;
}

}  // namespace tessera
