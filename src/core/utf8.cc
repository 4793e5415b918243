#include "core/utf8.h"

namespace tessera {
namespace {

// Length of the well-formed sequence at `at`, or 0.
size_t sequence_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto follows = [&](size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  const unsigned first = byte(at);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return follows(at + 1) ? 2 : 0;
  const unsigned second = byte(at + 1);
  if (first >= 0xe0 && first <= 0xef) {
    const bool good = second >= (first == 0xe0 ? 0xa0u : 0x80u) && second <= (first == 0xed ? 0x9fu : 0xbfu);
    return good && follows(at + 2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const bool good = second >= (first == 0xf0 ? 0x90u : 0x80u) && second <= (first == 0xf4 ? 0x8fu : 0xbfu);
    return good && follows(at + 2) && follows(at + 3) ? 4 : 0;
  }
  return 0;
}

}  // namespace

std::optional<size_t> first_invalid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = sequence_length(text, at);
    if (length == 0) return at;
    at += length;
  }
  return std::nullopt;
}

}  // namespace tessera
