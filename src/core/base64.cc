#include "core/base64.h"

#include <algorithm>
#include <array>
#include <cstdint>

namespace tessera {
namespace {

constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

constexpr std::array<int8_t, 256> make_table() {
  std::array<int8_t, 256> table{};
  for (auto& value : table) value = -1;
  for (size_t i = 0; i < kAlphabet.size(); ++i) table[static_cast<unsigned char>(kAlphabet[i])] = static_cast<int8_t>(i);
  return table;
}

constexpr std::array<int8_t, 256> kTable = make_table();

}  // namespace

Result<std::string> decode_base64(std::string_view text) {
  if (text.size() % 4 != 0)
    return invalid_input("base64 of " + std::to_string(text.size()) + " characters; the length must be a multiple of 4");
  size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  std::string out;
  out.reserve(text.size() / 4 * 3);
  for (size_t i = 0; i < text.size(); i += 4) {
    const bool last = i + 4 == text.size();
    uint32_t bits = 0;
    for (size_t j = 0; j < 4; ++j) {
      const bool pad = last && j >= 4 - padding;
      const int value = pad ? 0 : kTable[static_cast<unsigned char>(text[i + j])];
      if (value < 0) return invalid_input("base64 has a character outside its alphabet at offset " + std::to_string(i + j));
      bits = bits << 6 | static_cast<uint32_t>(value);
    }
    const size_t bytes = last ? 3 - padding : 3;
    // RFC 4648, 3.5: bits that are cut off must be zero, else two texts would name one content.
    if (bytes < 3 && (bits & ((1u << (8 * (3 - bytes))) - 1)) != 0)
      return invalid_input("base64 ends in bits that belong to no byte");
    for (size_t j = 0; j < bytes; ++j) out += static_cast<char>(bits >> (16 - 8 * j) & 0xff);
  }
  return out;
}

std::string encode_base64(std::string_view bytes) {
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; ++j)
      bits = bits << 8 | (j < count ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    for (size_t j = 0; j < 4; ++j) out += j <= count ? kAlphabet[bits >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

Result<std::string> decode_data_url(std::string_view url, size_t max_bytes) {
  const size_t comma = url.find(',');
  if (url.substr(0, 5) != "data:" || comma == std::string_view::npos)
    return invalid_input("a data URL needs the form data:image/png;base64,...");
  const std::string_view head = url.substr(5, comma - 5);
  if (head.size() < 7 || head.substr(head.size() - 7) != ";base64")
    return invalid_input("a data URL needs ;base64 before the comma");
  const std::string_view body = url.substr(comma + 1);
  if (body.size() / 4 * 3 > max_bytes + 2)
    return invalid_input("a data URL of " + std::to_string(body.size() / 4 * 3) + " bytes exceeds the limit of " +
                         std::to_string(max_bytes));
  return decode_base64(body);
}

}  // namespace tessera
