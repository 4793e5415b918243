#include "text/pre_tokenizer.h"

#include "text/unicode.h"

namespace tessera {
namespace {

constexpr std::string_view kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt2RegexOther =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

constexpr char32_t kEnd = 0xFFFFFFFF;

struct Char {
  char32_t code = kEnd;
  size_t length = 0;
  CharClass kind = CharClass::kOther;
  bool is_end() const { return length == 0; }
  bool is_newline() const { return code == '\n' || code == '\r'; }
  bool is_symbol() const { return !is_end() && kind == CharClass::kOther; }  // [^\s\p{L}\p{N}]
};

struct Scanner {
  std::string_view text;

  Char at(size_t position) const {
    if (position >= text.size()) return {};
    const Utf8Step step = read_utf8(text, position);
    return {step.code, step.length, char_class(step.code)};
  }
  size_t end_of_class(size_t position, CharClass kind, int limit = -1) const {
    for (Char c = at(position); !c.is_end() && c.kind == kind && limit != 0; c = at(position)) {
      position += c.length;
      --limit;
    }
    return position;
  }
  size_t end_of_symbols(size_t position) const { return end_of_class(position, CharClass::kOther); }
  size_t end_of_newlines(size_t position) const {
    while (position < text.size() && (text[position] == '\n' || text[position] == '\r')) ++position;
    return position;
  }
};

// Folds the case of the letters that contractions hold; U+017F (long s) folds to s.
char32_t fold(char32_t code) {
  if (code >= 'A' && code <= 'Z') return code + 32;
  return code == 0x17F ? U's' : code;
}

// The end of 's 't 're 've 'm 'll 'd at `position`, or `position` where there is none.
size_t end_of_contraction(const Scanner& scan, size_t position, bool any_case) {
  if (scan.text[position] != '\'') return position;
  const Char first = scan.at(position + 1);
  if (first.is_end()) return position;
  const char32_t a = any_case ? fold(first.code) : first.code;
  const size_t after = position + 1 + first.length;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return after;
  const Char second = scan.at(after);
  const char32_t b = any_case && !second.is_end() ? fold(second.code) : second.code;
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return after + second.length;
  return position;
}

// \s+(?!\S)|\s+ : a run of white space leaves its last character to the word behind it, if it has more than one.
size_t end_of_spaces(const Scanner& scan, size_t position) {
  size_t end = position, last = position;
  for (Char c = scan.at(end); !c.is_end() && c.kind == CharClass::kSpace; c = scan.at(end)) {
    last = end;
    end += c.length;
  }
  return end < scan.text.size() && last > position ? last : end;
}

size_t end_of_gpt2_cut(const Scanner& scan, size_t at) {
  if (const size_t end = end_of_contraction(scan, at, false); end > at) return end;
  const size_t word = scan.text[at] == ' ' ? at + 1 : at;
  const Char first = scan.at(word);
  if (!first.is_end() && first.kind != CharClass::kSpace) return scan.end_of_class(word, first.kind);
  return end_of_spaces(scan, at);
}

size_t end_of_qwen2_cut(const Scanner& scan, size_t at, int digits) {
  if (const size_t end = end_of_contraction(scan, at, true); end > at) return end;
  const Char first = scan.at(at);
  const Char second = scan.at(at + first.length);
  if (first.kind == CharClass::kLetter) return scan.end_of_class(at, CharClass::kLetter);
  if (first.kind != CharClass::kNumber && !first.is_newline() && !second.is_end() &&
      second.kind == CharClass::kLetter)
    return scan.end_of_class(at + first.length, CharClass::kLetter);
  if (first.kind == CharClass::kNumber) return scan.end_of_class(at, CharClass::kNumber, digits);
  if (first.is_symbol()) return scan.end_of_newlines(scan.end_of_symbols(at));
  if (first.code == ' ' && second.is_symbol()) return scan.end_of_newlines(scan.end_of_symbols(at + 1));
  // White space from here on. \s*[\r\n]+ reaches to the last line break of the run.
  size_t end = at, after_newline = at;
  for (Char c = first; !c.is_end() && c.kind == CharClass::kSpace; c = scan.at(end)) {
    end += c.length;
    if (c.is_newline()) after_newline = end;
  }
  return after_newline > at ? after_newline : end_of_spaces(scan, at);
}

}  // namespace

std::optional<PreTokenizer> pre_tokenizer_by_regex(std::string_view regex) {
  if (regex == kQwen2Regex) return PreTokenizer::kQwen2;
  if (regex == kLlama3Regex) return PreTokenizer::kLlama3;
  if (regex == kGpt2Regex || regex == kGpt2RegexOther) return PreTokenizer::kGpt2;
  return std::nullopt;
}

size_t next_cut(PreTokenizer kind, std::string_view text, size_t at) {
  const Scanner scan{text};
  switch (kind) {
    case PreTokenizer::kNone:
      return text.size() - at;
    case PreTokenizer::kGpt2:
      return end_of_gpt2_cut(scan, at) - at;
    case PreTokenizer::kQwen2:
      return end_of_qwen2_cut(scan, at, 1) - at;
    case PreTokenizer::kLlama3:
      return end_of_qwen2_cut(scan, at, 3) - at;
  }
  return text.size() - at;
}

}  // namespace tessera
