#pragma once

#include <optional>

#include "vision/byte_reader.h"
#include "vision/image.h"

namespace tessera {

/// What a picture's metadata says about its orientation. EXIF wins over XMP, as in Pillow.
struct OrientationTags {
  std::optional<int> exif;  // the raw value of tag 0x0112
  std::optional<int> xmp;   // tiff:Orientation

  /// 1..8; 1 when absent or out of range.
  int value() const {
    const int v = exif ? *exif : xmp.value_or(1);
    return v >= 1 && v <= 8 ? v : 1;
  }
};

/// Tag 0x0112 of the first directory of an EXIF block (a TIFF header in either byte order, with or without
/// "Exif\0\0" before it), of type SHORT or LONG; nullopt when there is none or the block is broken.
std::optional<int> exif_orientation_tag(ByteSpan exif);

/// tiff:Orientation of an XMP packet, as attribute or element.
std::optional<int> xmp_orientation_tag(ByteSpan xmp);

/// The picture turned upright. Requires: 1 <= orientation <= 8.
Image turn_upright(Image image, int orientation);

}  // namespace tessera
