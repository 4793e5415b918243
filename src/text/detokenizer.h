#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace tessera {

/// Turns a stream of ids into text that is whole UTF-8 at every moment. A control token gives nothing and changes
/// nothing. Bytes that could still become a character are held back (at most 3); bytes that can't leave as U+FFFD as
/// soon as that is known. One object a stream; not thread-safe. The tokenizer must outlive it.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, DecodeOptions options = {});

  /// The text that becomes certain with `id`; often empty. Ids without a piece give nothing.
  std::string push(int32_t id);
  /// The rest at the end of the stream (U+FFFD for what never became a character). The object is then as new.
  std::string finish();
  /// Bytes held back now, 0..3.
  size_t held_bytes() const { return held_.size(); }

 private:
  const Tokenizer* tokenizer_;
  DecodeOptions options_;
  std::string held_;
  bool first_ = true;
};

}  // namespace tessera
