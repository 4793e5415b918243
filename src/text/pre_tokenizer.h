#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace tessera {

/// The expressions by which byte-level tokenizers cut text before merging. Each is scanned by hand, in one pass.
enum class PreTokenizer {
  kNone,        ///< the whole text is one piece of work
  kGpt2,        ///< 's|'t|'re|... | ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kQwen2,       ///< (?i:'s|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
  kLlama3,      ///< as kQwen2 with \p{N}{1,3}
};

/// The one of these that a regular expression of tokenizer.json is, or nothing.
std::optional<PreTokenizer> pre_tokenizer_by_regex(std::string_view regex);

/// The length in bytes of the cut that begins at text[at]. Calling it again and again covers the text in linear time.
/// Requires: text is valid UTF-8, at < text.size() and at a character's beginning.
size_t next_cut(PreTokenizer kind, std::string_view text, size_t at);

}  // namespace tessera
