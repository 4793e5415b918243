#pragma once

#include <string>
#include <string_view>

namespace tessera::server {

/// Appends `text` as a JSON string, quotes included; what is not UTF-8 becomes U+FFFD. For the streaming
/// path, where building a tree for each token would cost more than the token's way through the server.
void append_json_string(std::string& out, std::string_view text);

/// Appends a finite number in the shortest form that reads back equal; other numbers as -9999.0, as OpenAI's
/// API does for a logarithm of zero.
void append_json_number(std::string& out, double value);

/// Bytes of the character that begins at `text[at]`, 1 to 4; 0 when no valid UTF-8 character begins there.
size_t utf8_length(std::string_view text, size_t at);

}  // namespace tessera::server
