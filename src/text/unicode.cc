#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "core/check.h"
#include "core/utf8.h"

namespace tessera {
namespace {

// The first character that NFC can change or that can change its neighbours is U+0300.
bool is_nfc_inert(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
}

int combining_class(int32_t code) { return utf8proc_get_property(code)->combining_class; }

// Canonical decomposition, without the reordering of marks.
std::vector<int32_t> decompose(std::string_view text) {
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
  std::vector<int32_t> codes;
  codes.reserve(text.size() + 4);
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = read_utf8(text, at);
    at += step.length;
    int32_t expanded[16];  // the longest canonical decomposition has 4 code points
    int boundary = 0;
    const auto count =
        utf8proc_decompose_char(static_cast<int32_t>(step.code), expanded, 16, kOptions, &boundary);
    TESSERA_CHECK(count >= 0 && count <= 16, "decomposition of a code point");
    codes.insert(codes.end(), expanded, expanded + count);
  }
  return codes;
}

// utf8proc sorts marks by swapping neighbours, which is quadratic in the length of a run; hence our own.
void reorder_marks(std::vector<int32_t>* codes) {
  for (size_t i = 0; i < codes->size();) {
    if (combining_class((*codes)[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < codes->size() && combining_class((*codes)[end]) != 0) ++end;
    std::stable_sort(codes->begin() + static_cast<ptrdiff_t>(i), codes->begin() + static_cast<ptrdiff_t>(end),
                     [](int32_t a, int32_t b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
}

}  // namespace

Utf8Step read_utf8(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {lead, 1, Utf8Step::kCharacter};
  int length = 0;
  unsigned low = 0x80, high = 0xBF;  // bounds of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {0xFFFD, 1, Utf8Step::kBroken};
  }
  char32_t code = lead & (0xFFu >> (length + 1));
  for (int i = 1; i < length; ++i) {
    if (at + i >= text.size()) return {0xFFFD, static_cast<uint8_t>(i), Utf8Step::kIncomplete};
    const unsigned next = byte(i);
    if (next < low || next > high) return {0xFFFD, static_cast<uint8_t>(i), Utf8Step::kBroken};
    code = code << 6 | (next & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {code, static_cast<uint8_t>(length), Utf8Step::kCharacter};
}

void append_utf8(std::string* out, char32_t code) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->push_back(static_cast<char>(0xC0 | code >> 6));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else if (code < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | code >> 12));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | code >> 18));
    out->push_back(static_cast<char>(0x80 | (code >> 12 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  }
}

bool is_valid_utf8(std::string_view text) { return !first_invalid_utf8(text); }

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = read_utf8(text, at);
    append_utf8(&out, step.code);
    at += step.length;
  }
  return out;
}

CharClass char_class(char32_t code) {
  if (code < 0x80) {
    if ((code >= 'a' && code <= 'z') || (code >= 'A' && code <= 'Z')) return CharClass::kLetter;
    if (code >= '0' && code <= '9') return CharClass::kNumber;
    return code == ' ' || (code >= 9 && code <= 13) ? CharClass::kSpace : CharClass::kOther;
  }
  switch (utf8proc_category(static_cast<int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return CharClass::kLetter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return CharClass::kNumber;
    case UTF8PROC_CATEGORY_ZS:  // White_Space is Zs, Zl, Zp and a few controls
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return CharClass::kSpace;
    default:
      return code == 0x85 ? CharClass::kSpace : CharClass::kOther;
  }
}

bool is_word_character(char32_t code) {
  if (code == '_') return true;
  const CharClass kind = char_class(code);
  if (kind == CharClass::kLetter || kind == CharClass::kNumber) return true;
  switch (utf8proc_category(static_cast<int32_t>(code))) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

size_t end_of_space_after(std::string_view text, size_t at) {
  while (at < text.size()) {
    const Utf8Step step = read_utf8(text, at);
    if (char_class(step.code) != CharClass::kSpace) break;
    at += step.length;
  }
  return at;
}

size_t character_before(std::string_view text, size_t at) {
  do --at;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  return at;
}

size_t begin_of_space_before(std::string_view text, size_t at, size_t floor) {
  while (at > floor) {
    const size_t before = character_before(text, at);
    if (char_class(read_utf8(text, before).code) != CharClass::kSpace) break;
    at = before;
  }
  return at;
}

std::string normalize_nfc(std::string_view text) {
  if (is_nfc_inert(text)) return std::string(text);
  std::vector<int32_t> codes = decompose(text);
  reorder_marks(&codes);
  const auto count = utf8proc_normalize_utf32(codes.data(), static_cast<utf8proc_ssize_t>(codes.size()),
                                              static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  TESSERA_CHECK(count >= 0, "composition of code points");
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) append_utf8(&out, static_cast<char32_t>(codes[i]));
  return out;
}

}  // namespace tessera
