#pragma once

#include <string>
#include <string_view>

#include "core/result.h"

namespace tessera {

/// Strict base64 of RFC 4648: the standard alphabet, padding required, no white space. Errors give the offset.
Result<std::string> decode_base64(std::string_view text);

/// The same alphabet, padded.
std::string encode_base64(std::string_view bytes);

/// The content of a base64 data URL, `data:[<media type>][;param]*;base64,<data>`, at most `max_bytes` when decoded.
Result<std::string> decode_data_url(std::string_view url, size_t max_bytes);

}  // namespace tessera
