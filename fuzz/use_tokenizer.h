#pragma once

#include <cstdlib>
#include <string>

#include "text/tokenizer.h"
#include "text/tokenizer_data.h"
#include "text/unicode.h"

namespace tessera::fuzz {

/// What must hold for every tokenizer that a reader accepted: plain text gives ids with pieces, none of them a control
/// token; decoded text is whole UTF-8.
inline void use_tokenizer(TokenizerData data) {
  const auto tokenizer = Tokenizer::from_data(std::move(data));
  const std::string text = "ab <|x|> <img>\xC3\xA9\xF0\x9F\x98\x80\n 12  a";
  const auto ids = tokenizer->encode(text);
  for (const int32_t id : ids)
    if (!tokenizer->has_piece(id) || tokenizer->is_control(id)) std::abort();
  if (!is_valid_utf8(tokenizer->decode(ids))) std::abort();
  tokenizer->decode(tokenizer->encode_with_special(text));
}

}  // namespace tessera::fuzz
