#include "text/detokenizer.h"

#include <algorithm>

#include "text/unicode.h"

namespace tessera {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Moves whole characters from the front of `bytes` to the result, and U+FFFD for what can't become one; what could
// still become one stays, unless `at_end`.
std::string take_text(std::string* bytes, bool each_byte, bool at_end) {
  std::string text;
  size_t at = 0;
  while (at < bytes->size()) {
    const Utf8Step step = read_utf8(*bytes, at);
    if (step.kind == Utf8Step::kIncomplete && !at_end) break;
    if (step.kind == Utf8Step::kCharacter)
      text.append(*bytes, at, step.length);
    else
      for (int i = 0; i < (each_byte ? step.length : 1); ++i) text += kReplacement;
    at += step.length;
  }
  bytes->erase(0, at);
  return text;
}

}  // namespace

Detokenizer::Detokenizer(const Tokenizer& tokenizer, DecodeOptions options)
    : tokenizer_(&tokenizer), options_(std::move(options)) {}

std::string Detokenizer::push(int32_t id) {
  const auto& visible = options_.visible_control;
  if (!tokenizer_->has_piece(id)) return {};
  if (tokenizer_->is_control(id) && std::find(visible.begin(), visible.end(), id) == visible.end()) return {};
  std::string_view bytes = tokenizer_->token_bytes(id);
  if (first_ && tokenizer_->drops_leading_space(id)) bytes.remove_prefix(1);
  first_ = false;
  held_ += bytes;
  return take_text(&held_, tokenizer_->replaces_each_byte(), /*at_end=*/false);
}

std::string Detokenizer::finish() {
  std::string text = take_text(&held_, tokenizer_->replaces_each_byte(), /*at_end=*/true);
  first_ = true;
  return text;
}

}  // namespace tessera
