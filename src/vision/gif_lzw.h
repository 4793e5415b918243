#pragma once

#include <cstdint>
#include <vector>

#include "core/result.h"
#include "vision/byte_reader.h"

namespace tessera {

/// Decodes the image data of a GIF frame: `min_code_size` is the byte before them, `blocks` starts at the
/// first sub-block. Returns exactly `count` indices; memory grows with what really comes. Errors
/// (kInvalidInput): data that end early, an impossible code.
Result<std::vector<uint8_t>> decode_gif_lzw(int min_code_size, ByteSpan blocks, size_t count);

}  // namespace tessera
