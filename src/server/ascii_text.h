#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace tessera::server {

/// A-Z become a-z; nothing else changes, whatever the locale.
inline std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return lower;
}

/// `text` with its %XX escapes decoded; nullopt where a % is not followed by two hexadecimal digits.
inline std::optional<std::string> percent_decoded(std::string_view text) {
  auto digit = [&](size_t i) {
    const char c = i < text.size() ? text[i] : '\0';
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
  };
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded += text[i];
      continue;
    }
    if (digit(i + 1) < 0 || digit(i + 2) < 0) return std::nullopt;
    decoded += static_cast<char>(digit(i + 1) * 16 + digit(i + 2));
    i += 2;
  }
  return decoded;
}

}  // namespace tessera::server
