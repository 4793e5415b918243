#pragma once

#include "core/result.h"
#include "vision/byte_reader.h"
#include "vision/decode.h"

namespace tessera {

/// The decoders of single formats, behind decode.h. `read_..._header` looks at no more than it must and
/// checks that the format's own fields make sense, sides of 0 and limits excepted. `decode_...` gets the
/// header that was read from the same bytes and whose size was checked.
Result<ImageHeader> read_jpeg_header(ByteSpan bytes);
Result<Image> decode_jpeg(ByteSpan bytes, const ImageHeader& header);

Result<ImageHeader> read_png_header(ByteSpan bytes);
Result<Image> decode_png(ByteSpan bytes, const ImageHeader& header);

Result<ImageHeader> read_webp_header(ByteSpan bytes);
Result<Image> decode_webp(ByteSpan bytes, const ImageHeader& header);

Result<ImageHeader> read_gif_header(ByteSpan bytes);
Result<Image> decode_gif(ByteSpan bytes, const ImageHeader& header);

Result<ImageHeader> read_bmp_header(ByteSpan bytes);
Result<Image> decode_bmp(ByteSpan bytes, const ImageHeader& header);

Result<ImageHeader> read_pnm_header(ByteSpan bytes);
Result<Image> decode_pnm(ByteSpan bytes, const ImageHeader& header);

}  // namespace tessera
