#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/token_engine.h"
#include "tessera/engine.h"
#include "text/detokenizer.h"
#include "text/stop_strings.h"
#include "text/tokenizer.h"

namespace tessera {

/// Turns the token events of one request into text for its listener: whole characters, nothing past a stop string, one
/// detokenizer for each of the n answers. Called on the engine's thread alone.
class AnswerStream : public TokenListener {
 public:
  struct Options {
    int answers = 1;
    std::vector<std::string> stop;
    std::vector<int32_t> stop_ids;  ///< end an answer and give no text, whatever their piece is
    bool logprobs = false;
    DecodeOptions decode;
    double preprocess_s = 0;
    std::function<void()> on_end;  ///< after the last answer's end
  };

  /// `tokenizer` must outlive the stream.
  AnswerStream(const Tokenizer& tokenizer, Options options, std::shared_ptr<Listener> listener);

  bool on_token(const TokenEvent& event) override;
  void on_finish(const Finish& finish) override;

 private:
  struct Answer {
    Detokenizer detokenizer;
    StopStrings stops;
    bool stopped = false;  ///< by a stop string
    int64_t tokens = 0;
  };

  void flush(int index, Answer& answer);

  Options options_;
  std::shared_ptr<Listener> listener_;
  std::vector<Answer> answers_;
  int finished_ = 0;
};

}  // namespace tessera
