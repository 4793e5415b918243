#include "text/tokenizer_data.h"

#include <cstdio>

#include "text/unicode.h"

namespace tessera {

Status add_piece(TokenizerData* data, const std::string& file, int64_t id, const std::string& spelling,
                 Piece piece) {
  if (id < 0 || id > kMaxTokenId)
    return invalid_input("[" + file + "] token " + shown(spelling) + " has id " + std::to_string(id) +
                         "; expected 0.." + std::to_string(kMaxTokenId));
  if (spelling.size() > kMaxPieceBytes)
    return invalid_input("[" + file + "] token " + std::to_string(id) + " is " + std::to_string(spelling.size()) +
                         " bytes long; at most " + std::to_string(kMaxPieceBytes) + " are supported");
  if (data->pieces.size() <= static_cast<size_t>(id)) data->pieces.resize(static_cast<size_t>(id) + 1);
  Piece& slot = data->pieces[static_cast<size_t>(id)];
  if (slot.kind != PieceKind::kNone)
    return invalid_input("[" + file + "] id " + std::to_string(id) + " stands for two tokens, one of them " +
                         shown(spelling));
  if (!data->ids.emplace(spelling, static_cast<int32_t>(id)).second)
    return invalid_input("[" + file + "] token " + shown(spelling) + " stands there twice");
  slot = std::move(piece);
  return {};
}

const std::array<char32_t, 256>& byte_stand_ins() {
  static const std::array<char32_t, 256> table = [] {
    std::array<char32_t, 256> t{};
    char32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
      t[byte] = printable ? static_cast<char32_t>(byte) : next++;
    }
    return t;
  }();
  return table;
}

std::optional<std::string> bytes_of_stand_ins(std::string_view spelling) {
  static const std::array<int16_t, 0x144> inverse = [] {
    std::array<int16_t, 0x144> t{};
    t.fill(-1);
    for (int16_t byte = 0; byte < 256; ++byte) t[byte_stand_ins()[static_cast<size_t>(byte)]] = byte;
    return t;
  }();
  std::string bytes;
  for (size_t at = 0; at < spelling.size();) {
    const Utf8Step step = read_utf8(spelling, at);
    at += step.length;
    if (step.code >= inverse.size() || inverse[step.code] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(inverse[step.code]));
  }
  return bytes;
}

std::string stand_ins_of_bytes(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) append_utf8(&out, byte_stand_ins()[static_cast<unsigned char>(c)]);
  return out;
}

int byte_piece_value(std::string_view spelling) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  if (spelling.size() != 6 || spelling.substr(0, 3) != "<0x" || spelling[5] != '>') return -1;
  const int high = digit(spelling[3]), low = digit(spelling[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::string mark_to_space(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    if (text.substr(at, kSpaceMark.size()) == kSpaceMark) {
      out.push_back(' ');
      at += kSpaceMark.size();
    } else {
      out.push_back(text[at++]);
    }
  }
  return out;
}

std::string shown(std::string_view text) {
  constexpr size_t kShown = 60;
  std::string out = "\"";
  size_t at = 0;
  while (at < text.size() && at < kShown) {
    const Utf8Step step = read_utf8(text, at);
    if (step.kind != Utf8Step::kCharacter || step.code < 0x20 || step.code == 0x7F) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", static_cast<unsigned char>(text[at]));
      out += escaped;
      at += 1;
    } else {
      out += text.substr(at, step.length);
      at += step.length;
    }
  }
  return out + (at < text.size() ? "...\"" : "\"");
}

}  // namespace tessera
