#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tessera {

/// One step of reading UTF-8.
struct Utf8Step {
  enum Kind : uint8_t {
    kCharacter,   ///< a whole, well-formed character
    kBroken,      ///< bytes that can't become a character: the longest beginning of a well-formed one, or one byte
    kIncomplete,  ///< the text ends inside a well-formed beginning
  };
  char32_t code = 0;  ///< U+FFFD unless kCharacter
  uint8_t length = 0;
  Kind kind = kCharacter;
};

/// Reads one step at text[at] (RFC 3629: no surrogates, no overlong forms, nothing above U+10FFFF).
/// Requires: at < text.size().
Utf8Step read_utf8(std::string_view text, size_t at);

void append_utf8(std::string* out, char32_t code);

bool is_valid_utf8(std::string_view text);

/// `text` with one U+FFFD for every broken or incomplete sequence.
std::string replace_invalid_utf8(std::string_view text);

/// The classes that pre-tokenizer expressions speak of: \p{L}, \p{N}, \s (White_Space); the three are disjoint.
enum class CharClass : uint8_t { kOther, kLetter, kNumber, kSpace };
CharClass char_class(char32_t code);

/// \w: letters, marks, numbers, connector punctuation.
bool is_word_character(char32_t code);

/// Where white space that begins at `at` ends.
size_t end_of_space_after(std::string_view text, size_t at);
/// Where white space that ends at `at` begins, at least `floor`. Both require valid UTF-8 and character borders.
size_t begin_of_space_before(std::string_view text, size_t at, size_t floor = 0);
/// The beginning of the last character before `at`. Requires: at > 0.
size_t character_before(std::string_view text, size_t at);

/// Normalization Form C, in time linear in the text but for sorting each run of combining marks.
/// Requires: is_valid_utf8(text).
std::string normalize_nfc(std::string_view text);

}  // namespace tessera
