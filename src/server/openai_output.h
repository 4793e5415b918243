#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/engine.h"

namespace tessera::server {

/// What is the same in every chunk of an answer.
struct AnswerShape {
  bool chat = true;
  bool include_usage = false;  ///< chunks then carry "usage": null, and one more its numbers
  bool logprobs = false;
  std::string id;  ///< chatcmpl-... or cmpl-...
  std::string model;
  int64_t created = 0;  ///< seconds since 1970
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t image_tokens = 0;
};

/// Logprobs of one answer as JSON text, in the shape of its endpoint; grows delta by delta.
class LogprobText {
 public:
  explicit LogprobText(bool chat) : chat_(chat) {}
  void append(Engine& engine, std::span<const TokenLogprob> tokens, int alternatives);
  /// The object, or "null" when nothing was appended. `clear()` keeps the text offset, for the next chunk.
  std::string text() const;
  void clear();
  size_t bytes() const { return content_.size() + values_.size() + tops_.size() + offsets_.size(); }

 private:
  bool chat_;
  bool any_ = false;
  int64_t offset_ = 0;                             // characters so far, for completions
  std::string content_, values_, tops_, offsets_;  // lists without their brackets; chat uses content_ alone
};

/// One answer of several.
struct Choice {
  std::string text;
  std::string logprobs = "null";
  FinishReason reason = FinishReason::kStop;
};

/// Server-sent events. `first`: the chunk names the role, as the first of each answer does.
void append_text_chunk(std::string& out, const AnswerShape& shape, int index, std::string_view text,
                       bool first, const std::string& logprobs);
void append_finish_chunk(std::string& out, const AnswerShape& shape, int index, FinishReason reason);
void append_usage_chunk(std::string& out, const AnswerShape& shape, const Usage& usage);

/// The whole answer as one object.
std::string answer_body(const AnswerShape& shape, std::span<const Choice> choices, const Usage& usage);

const char* finish_word(FinishReason reason);

}  // namespace tessera::server
