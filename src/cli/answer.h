#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "core/json.h"
#include "tessera/engine.h"

namespace tessera::cli {

/// Collects everything about one request (of one answer) and lets a thread wait for its end.
class Answer : public Listener {
 public:
  /// `on_text` (may be empty) gets new text as it comes, on the engine's thread.
  explicit Answer(std::function<void(const std::string&)> on_text = {}) : on_text_(std::move(on_text)) {}

  void on_prompt(const PromptInfo& info) override;
  void on_delta(const Delta& delta) override;
  void on_finish(const Finish& finish) override;

  /// Waits at most this long; true when the answer has ended.
  bool wait_for(double seconds);
  bool done() const;

  /// The rest is stable once done.
  const std::string& text() const { return text_; }
  const PromptInfo& prompt() const { return prompt_; }
  const Finish& finish() const { return finish_; }
  int64_t completion_tokens() const { return static_cast<int64_t>(token_ids_.size()); }

  /// The JSON contract of `tessera run --json`; `logprobs` adds that field.
  Json to_json(double load_s, bool logprobs) const;

 private:
  std::function<void(const std::string&)> on_text_;
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  bool done_ = false;
  std::string text_;
  std::vector<int32_t> token_ids_;
  std::vector<TokenLogprob> logprobs_;
  PromptInfo prompt_;
  Finish finish_;
};

const char* finish_reason_name(FinishReason reason);

/// `[{"width", "height", "grid", "tiles"}]`.
Json images_json(const std::vector<ImageInfo>& images);

}  // namespace tessera::cli
