#pragma once

#include <string>

#include "core/result.h"
#include "vision/image.h"

namespace tessera {

/// The picture as an 8-bit RGB PNG file's bytes. Requires: at least 1 x 1 pixels.
std::string encode_png(const Image& image);

}  // namespace tessera
