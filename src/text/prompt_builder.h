#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace tessera {

/// Collects a prompt from text and control tokens. Text between two control tokens is encoded in one piece, whoever
/// wrote its parts, as a tokenizer would that finds the control tokens first; white space that a control token
/// swallows (its rstrip and lstrip flags) is left out. One prompt; not thread-safe.
class PromptBuilder {
 public:
  /// Begins with the tokenizer's BOS, if it adds one.
  explicit PromptBuilder(const Tokenizer& tokenizer);

  void text(std::string_view text) { run_ += text; }
  void token(int32_t id);
  /// `count` times the same token; returns the position of the first.
  int64_t repeat(int32_t id, int64_t count);
  /// The finished ids; the builder is empty afterwards.
  std::vector<int32_t> take();

 private:
  void flush(int32_t next);

  const Tokenizer* tokenizer_;
  std::vector<int32_t> ids_;
  std::string run_;
  int32_t last_ = -1;  ///< the token before the run; BOS does not count: texts that open a prompt follow it, too
};

}  // namespace tessera
