#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/result.h"
#include "vision/image.h"

namespace tessera {

/// What a picture may cost. All three are checked from the header, before anything is decoded.
struct DecodeLimits {
  int64_t max_pixels = 178956970;        // width * height after decoding; Pillow's limit
  int64_t max_side = int64_t{1} << 20;   // pixels; the longest side
  size_t max_bytes = size_t{256} << 20;  // bytes of the encoded picture
};

/// Whether the orientation that a picture's metadata asks for is applied. The reference ignores it.
enum class ExifOrientation { kIgnore, kApply };

enum class ImageFormat { kJpeg, kPng, kWebp, kGif, kBmp, kPnm };

/// "JPEG", "PNG", ... for messages.
const char* image_format_name(ImageFormat format);

/// What the first bytes and the metadata of an encoded picture say.
struct ImageHeader {
  ImageFormat format = ImageFormat::kJpeg;
  int64_t width = 0;    // pixels, as stored (before any turn)
  int64_t height = 0;   // pixels, as stored
  int orientation = 1;  // EXIF orientation 1..8; 1 when absent or out of range
  int64_t working_bytes = 0;  // what decoding holds beside the picture, where that grows with its size

  /// Memory that decode_image holds at its peak, the encoded bytes not counted.
  int64_t decoding_bytes(ExifOrientation exif) const {
    const int64_t picture = width * height * 3;
    const bool turned = exif == ExifOrientation::kApply && orientation != 1;  // a second picture, once the rest is gone
    return picture + std::max(working_bytes, turned ? picture : 0);
  }
};

/// Reads size, format and orientation without decoding, and checks the size against `limits`. The format is
/// told by the first bytes, never by a name. Thread-safe: no state is kept.
/// Errors (kInvalidInput): empty or unknown data, a broken header, a zero side, a limit exceeded. Their texts
/// do not name the file; the caller adds it with Status::with_context.
Result<ImageHeader> probe_image(std::span<const std::byte> encoded, const DecodeLimits& limits);

/// Decodes a JPEG, PNG, WebP, GIF (first frame), BMP or PNM picture to RGB: the bytes of Pillow 13's
/// `Image.open(...).convert("RGB")`. Alpha is dropped, not composited; gamma and colour profiles play no
/// part. Memory grows with the rows that really arrive, not with the size that a header claims. Thread-safe.
/// Errors (kInvalidInput): as probe_image, and truncated or broken data.
Result<Image> decode_image(std::span<const std::byte> encoded, const DecodeLimits& limits,
                           ExifOrientation exif_orientation);

}  // namespace tessera
