#pragma once

#include <string>

#include "core/result.h"
#include "vision/image.h"

namespace tessera {

/// A baseline JPEG of `image`, 4:2:0, quality 1..100: what benchmarks send as a person's picture.
Result<std::string> encode_jpeg(const Image& image, int quality);

}  // namespace tessera
