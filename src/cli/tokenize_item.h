#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/result.h"
#include "text/tokenizer.h"

namespace tessera::cli {

/// One line of `tokenize --input`: a text, or ids.
struct TokenizeItem {
  std::optional<std::string> text;
  std::vector<int32_t> ids;
};

/// `{"text": T}` or `{"ids": [...]}`. Unpaired surrogate escapes count as U+FFFD. Errors: anything else, and ids that
/// are no tokens.
Result<TokenizeItem> parse_tokenize_item(std::string_view line, const Tokenizer& tokenizer);

/// `{"ids", "text"}`; for an item of ids also `pieces`, as they would be streamed, with one more for the end.
Json tokenize_result(const TokenizeItem& item, const std::vector<int32_t>& ids, const Tokenizer& tokenizer);

}  // namespace tessera::cli
