#include "server/data_url.h"

#include <array>
#include <cstdint>

namespace tessera::server {
namespace {

constexpr size_t kMaxMediaType = 128;
constexpr uint8_t kBad = 0xFF;

constexpr std::array<uint8_t, 256> make_base64_values() {
  std::array<uint8_t, 256> values{};
  for (auto& value : values) value = kBad;
  constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (uint8_t i = 0; i < 64; ++i) values[static_cast<unsigned char>(kAlphabet[i])] = i;
  return values;
}
constexpr std::array<uint8_t, 256> kBase64 = make_base64_values();

bool token_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '+' ||
         c == '.' || c == '_' || c == '=' || c == ';';
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool starts_with_word(std::string_view text, std::string_view word) {
  if (text.size() < word.size()) return false;
  for (size_t i = 0; i < word.size(); ++i)
    if (lower(text[i]) != word[i]) return false;
  return true;
}

}  // namespace

Result<std::string> decode_base64(std::string_view text) {
  if (text.size() % 4 != 0)
    return invalid_input("base64 of " + std::to_string(text.size()) + " characters; expected a multiple of 4, padded with =");
  size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  const size_t digits = text.size() - padding;
  std::string bytes(text.size() / 4 * 3 - padding, '\0');
  uint32_t bits = 0;
  int held = 0;
  size_t at = 0;
  for (size_t i = 0; i < digits; ++i) {
    const uint8_t value = kBase64[static_cast<unsigned char>(text[i])];
    if (value == kBad) return invalid_input("base64 has a character outside its alphabet at position " + std::to_string(i));
    bits = (bits << 6 | value) & 0xFFFFFF;
    held += 6;
    if (held >= 8) {
      held -= 8;
      bytes[at++] = static_cast<char>(bits >> held & 0xFF);
    }
  }
  if ((bits & ((1u << held) - 1)) != 0) return invalid_input("base64 has spare bits that are not zero at its end");
  return bytes;
}

Result<std::string> decode_image_data_url(std::string_view url) {
  if (!starts_with_word(url, "data:")) return invalid_input("not a data URL");
  url.remove_prefix(5);
  const size_t comma = url.substr(0, kMaxMediaType).find(',');
  if (comma == std::string_view::npos) return invalid_input("data URL without a comma after its type");
  std::string_view type = url.substr(0, comma);
  if (!starts_with_word(type, "image/")) return invalid_input("data URL whose type is not image/...");
  type.remove_prefix(6);
  for (char c : type)
    if (!token_char(c)) return invalid_input("data URL with a malformed type");
  constexpr std::string_view kEnd = ";base64";
  if (type.size() <= kEnd.size() || !starts_with_word(type.substr(type.size() - kEnd.size()), kEnd))
    return invalid_input("data URL that is not ;base64");
  if (type.front() == ';') return invalid_input("data URL with a malformed type");
  auto bytes = decode_base64(url.substr(comma + 1));
  if (!bytes.ok()) return bytes.status().with_context("data URL");
  if (bytes->empty()) return invalid_input("data URL without bytes");
  return bytes;
}

}  // namespace tessera::server
