#pragma once

#include <string>
#include <string_view>

#include "core/result.h"

namespace tessera::server {

/// The bytes of a data URL that carries a picture: `data:image/TYPE[;NAME=VALUE...];base64,BYTES`. Strict: RFC 4648's
/// standard alphabet, padding present and its spare bits zero, no white space. The type's name is checked for form only;
/// what the bytes are is found out by decoding them. Errors are kInvalidInput and never quote the payload.
Result<std::string> decode_image_data_url(std::string_view url);

/// Strict base64 (RFC 4648, section 4).
Result<std::string> decode_base64(std::string_view text);

}  // namespace tessera::server
