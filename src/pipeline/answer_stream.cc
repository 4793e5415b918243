#include "pipeline/answer_stream.h"

#include <algorithm>
#include <utility>

namespace tessera {

AnswerStream::AnswerStream(const Tokenizer& tokenizer, Options options, std::shared_ptr<Listener> listener)
    : options_(std::move(options)), listener_(std::move(listener)) {
  for (int i = 0; i < options_.answers; ++i)
    answers_.push_back({Detokenizer(tokenizer, options_.decode), StopStrings(options_.stop)});
}

bool AnswerStream::on_token(const TokenEvent& event) {
  Answer& answer = answers_.at(static_cast<size_t>(event.index));
  ++answer.tokens;
  const auto& ends = options_.stop_ids;
  const bool ending = std::find(ends.begin(), ends.end(), event.id) != ends.end();
  StopStrings::Result found = answer.stops.push(ending ? "" : answer.detokenizer.push(event.id));
  answer.stopped = found.stopped;
  Delta delta{.index = event.index, .text = std::move(found.text), .token_ids = {event.id}, .logprobs = {}};
  if (options_.logprobs) {
    TokenLogprob logprob{.token_id = event.id, .logprob = event.logprob, .top = {}};
    for (const auto& [id, value] : event.top) logprob.top.emplace_back(id, value);
    delta.logprobs.push_back(std::move(logprob));
  }
  listener_->on_delta(delta);
  return !answer.stopped;
}

void AnswerStream::on_finish(const Finish& finish) {
  // The end is told to the owner whatever the listener does.
  struct AtEnd {
    AnswerStream* self;
    ~AtEnd() {
      if (++self->finished_ == self->options_.answers && self->options_.on_end) self->options_.on_end();
    }
  } at_end{this};
  Answer& answer = answers_.at(static_cast<size_t>(finish.index));
  Finish out = finish;
  if (!answer.stopped) flush(finish.index, answer);
  if (answer.stopped && out.reason != FinishReason::kError) out.reason = FinishReason::kStop;
  out.completion_tokens = answer.tokens;
  out.timings.preprocess_s = options_.preprocess_s;
  listener_->on_finish(out);
}

void AnswerStream::flush(int index, Answer& answer) {
  // What the detokenizer still holds may itself complete a stop string.
  StopStrings::Result rest = answer.stops.push(answer.detokenizer.finish());
  answer.stopped = rest.stopped;
  if (!rest.stopped) rest.text += answer.stops.finish();
  if (!rest.text.empty())
    listener_->on_delta({.index = index, .text = std::move(rest.text), .token_ids = {}, .logprobs = {}});
}

}  // namespace tessera
