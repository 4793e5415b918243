#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/json.h"
#include "tessera/engine.h"
#include "tessera/options.h"

namespace tessera::testing {

/// Everything a listener hears of one request, for tests; wait() blocks until all answers have ended.
class Recorder : public Listener {
 public:
  explicit Recorder(int answers = 1) : left_(answers) { answers_.resize(static_cast<size_t>(answers)); }

  struct Answer {
    std::string text;
    std::vector<int32_t> ids;
    std::vector<TokenLogprob> logprobs;
    Finish finish;
  };

  void on_prompt(const PromptInfo& info) override;
  void on_delta(const Delta& delta) override;
  void on_finish(const Finish& finish) override;

  void wait();
  /// False when an answer still runs after so long.
  bool wait_for(double seconds);
  const Answer& answer(size_t i = 0) const { return answers_[i]; }
  const PromptInfo& prompt() const { return prompt_; }
  int prompts() const { return prompts_; }

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  int left_;
  int prompts_ = 0;
  PromptInfo prompt_;
  std::vector<Answer> answers_;
};

/// The CPU, or the device that TESSERA_TEST_DEVICE names ("cuda"), with TESSERA_TEST_SHARED_MEMORY bytes a block imposed.
void use_test_device(EngineOptions& options);

/// Submits and waits. A refusal at submit() is recorded as the first answer's end.
std::shared_ptr<Recorder> ask(Engine& engine, const Request& request);

/// The request of a golden case: OpenAI-style `messages`, pictures read relative to `directory`, `max_dynamic_patch`,
/// `max_new_tokens`, five logprobs a token.
Request golden_request(const Json& golden_case, const std::string& directory);

}  // namespace tessera::testing
