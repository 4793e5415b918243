#include "server/answer.h"

#include "server/log.h"

namespace tessera::server {
namespace {

// Of an answer that is collected before it is sent; logprobs of many alternatives can be this long.
constexpr size_t kMaxAnswerBytes = size_t{64} << 20;

// A client with more than this unread has fallen behind: its tokens are gathered, up to kMostGathered, into one event. An
// event is fifty times as large as its token, so that a stream that is read late costs little more than its text.
constexpr size_t kBehindBytes = 64 << 10;
constexpr size_t kMostGathered = 1 << 20;

}  // namespace

void ActiveAnswers::add(const std::shared_ptr<Answer>& answer) {
  std::lock_guard lock(mutex_);
  answers_[answer.get()] = answer;
}

void ActiveAnswers::remove(const Answer* answer) {
  std::lock_guard lock(mutex_);
  answers_.erase(answer);
}

size_t ActiveAnswers::count() const {
  std::lock_guard lock(mutex_);
  return answers_.size();
}

void ActiveAnswers::cancel_all() {
  std::vector<std::shared_ptr<Answer>> held;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, weak] : answers_)
      if (auto answer = weak.lock()) held.push_back(std::move(answer));
  }
  for (const auto& answer : held) answer->cancel();
}

Answer::Answer(const AnswerContext& context, AnswerPlan plan, std::shared_ptr<Exchange> exchange)
    : context_(context), plan_(std::move(plan)), exchange_(std::move(exchange)), unfinished_(plan_.n) {
  request_id_ = exchange_->request().id;
  for (int i = 0; i < plan_.n; ++i) parts_.push_back({"", LogprobText(plan_.shape.chat)});
}

Answer::~Answer() {
  context_.active->remove(this);
}

void Answer::submit(Request request) {
  context_.active->add(shared_from_this());
  exchange_->on_close([weak = weak_from_this()] {
    if (auto self = weak.lock()) self->client_gone();
  });
  auto [id, status] = context_.engine->submit(std::move(request), shared_from_this());
  if (!status.ok()) {
    exchange_->defer([self = shared_from_this(), status = status] {
      self->unfinished_ = 0;
      self->fail(api_error(status, *self->context_.draining));
      self->plan_.slot.reset();
    });
    return;
  }
  bool cancelled;
  {
    std::lock_guard lock(mutex_);
    engine_id_ = id;
    cancelled = cancel_wanted_;
  }
  if (cancelled) context_.engine->cancel(id);
}

void Answer::cancel() {
  RequestId id;
  {
    std::lock_guard lock(mutex_);
    cancel_wanted_ = true;
    id = engine_id_;
  }
  if (id) context_.engine->cancel(id);
}

void Answer::on_prompt(const PromptInfo& info) {
  push({Clock::now(), info});
}
void Answer::on_delta(const Delta& delta) {
  push({Clock::now(), delta});
}
void Answer::on_finish(const Finish& finish) {
  push({Clock::now(), finish});
}

void Answer::push(Event event) {
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(event));
    if (scheduled_) return;
    scheduled_ = true;
  }
  exchange_->defer([self = shared_from_this()] { self->drain(); });
}

void Answer::drain() {
  std::vector<Event> events;
  {
    std::lock_guard lock(mutex_);
    events.swap(queue_);
    scheduled_ = false;
  }
  const size_t unread = exchange_->unread();
  behind_ = streaming_ && unread > kBehindBytes;
  if (!behind_ || held_bytes() > kMostGathered) flush_all();
  for (const Event& event : events) {
    // A busy machine may bring thousands of events at once: what they make counts as unread, too.
    behind_ = behind_ || (streaming_ && unread + out_.size() > kBehindBytes);
    if (const auto* info = std::get_if<PromptInfo>(&event.what))
      handle(*info);
    else if (const auto* delta = std::get_if<Delta>(&event.what))
      handle(*delta, event.when);
    else
      handle(std::get<Finish>(event.what), event.when);
  }
  if (!out_.empty() && !closed_) exchange_->write(std::move(out_));
  out_.clear();
  if (unfinished_ == 0 && !closed_) complete();
  if (unfinished_ == 0) plan_.slot.reset();
  if (!behind_ || closed_) return;
  exchange_->on_caught_up([weak = weak_from_this()] {
    if (auto self = weak.lock()) self->catch_up();
  });
}

void Answer::handle(const PromptInfo& info) {
  usage_.prompt_tokens = info.prompt_tokens;
  usage_.image_tokens = info.image_tokens;
  context_.metrics->prompt_tokens.observe(static_cast<double>(info.prompt_tokens));
  context_.metrics->images += info.images.size();
  for (const ImageInfo& image : info.images) context_.metrics->tiles += static_cast<uint64_t>(image.tiles);
  if (plan_.stream && !closed_) begin_stream();
}

void Answer::begin_stream() {
  HttpResponse head;
  head.content_type = "text/event-stream; charset=utf-8";
  head.headers = plan_.headers;
  head.headers.emplace_back("Cache-Control", "no-cache");
  head.headers.emplace_back("X-Accel-Buffering", "no");  // proxies that buffer would hold tokens back
  exchange_->begin_stream(std::move(head));
  streaming_ = true;
}

void Answer::observe_tokens(Part& part, const Delta& delta, Clock::time_point when) {
  if (delta.token_ids.empty()) return;
  auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  if (first_token_s_ < 0) {
    first_token_s_ = seconds(when - arrival_);
    context_.metrics->time_to_first_token.observe(first_token_s_);
  }
  if (part.last_token != Clock::time_point{})
    context_.metrics->inter_token_latency.observe(seconds(when - part.last_token) /
                                                  static_cast<double>(delta.token_ids.size()));
  part.last_token = when;
}

// Writes what one answer of a stream holds, as one event.
void Answer::flush(int index) {
  Part& part = parts_.at(static_cast<size_t>(index));
  if (part.text.empty() && part.logprobs.bytes() == 0 && part.begun) return;
  append_text_chunk(out_, plan_.shape, index, part.text, !part.begun,
                    plan_.shape.logprobs ? part.logprobs.text() : "null");
  part.begun = true;
  part.text.clear();
  part.logprobs.clear();
}

void Answer::flush_all() {
  if (!streaming_ || closed_) return;
  for (int index = 0; index < plan_.n; ++index) {
    const Part& part = parts_[static_cast<size_t>(index)];
    if (!part.text.empty() || part.logprobs.bytes() > 0) flush(index);
  }
}

void Answer::catch_up() {
  if (closed_) return;
  behind_ = false;
  flush_all();
  if (!out_.empty()) exchange_->write(std::move(out_));
  out_.clear();
}

size_t Answer::held_bytes() const {
  size_t bytes = 0;
  for (const Part& part : parts_) bytes += part.text.size() + part.logprobs.bytes();
  return bytes;
}

void Answer::handle(const Delta& delta, Clock::time_point when) {
  if (closed_) return;
  Part& part = parts_.at(static_cast<size_t>(delta.index));
  observe_tokens(part, delta, when);
  if (plan_.shape.logprobs) part.logprobs.append(*context_.engine, delta.logprobs, plan_.top_logprobs);
  part.text += delta.text;
  if (streaming_) {
    if (!behind_) flush(delta.index);
    return;
  }
  answer_bytes_ +=
      delta.text.size() + delta.logprobs.size() * 64 * static_cast<size_t>(plan_.top_logprobs + 1);
  if (answer_bytes_ > kMaxAnswerBytes) {
    cancel();
    fail({400, "[serve] the answer exceeds " + std::to_string(kMaxAnswerBytes) + " bytes; set stream: true",
          "stream", "answer_too_large"});
  }
}

void Answer::handle(const Finish& finish, Clock::time_point when) {
  if (unfinished_ > 0) --unfinished_;
  Metrics& metrics = *context_.metrics;
  metrics.count_finish(finish_word(finish.reason));
  usage_.completion_tokens += finish.completion_tokens;
  if (finish.index == 0) usage_.cached_tokens = finish.cached_tokens;
  if (finish.reason == FinishReason::kError || finish.reason == FinishReason::kCancelled) {
    if (finish.reason == FinishReason::kError) {  // the others of the n answers end with it
      unfinished_ = 0;
      cancel();
    }
    const Status why = finish.status.ok() ? Status(StatusCode::kCancelled, "") : finish.status;
    fail(api_error(why, *context_.draining));
    return;
  }
  metrics.generation_tokens.observe(static_cast<double>(finish.completion_tokens));
  metrics.queue_time.observe(finish.timings.queue_s);
  metrics.preprocess_time.observe(finish.timings.preprocess_s);
  metrics.encode_time.observe(finish.timings.encode_s);
  metrics.prefill_time.observe(finish.timings.prefill_s);
  metrics.decode_time.observe(finish.timings.decode_s);
  metrics.request_latency.observe(std::chrono::duration<double>(when - arrival_).count());
  if (closed_) return;
  Part& part = parts_.at(static_cast<size_t>(finish.index));
  part.finished = true;
  part.reason = finish.reason;
  if (!streaming_) return;
  flush(finish.index);
  append_finish_chunk(out_, plan_.shape, finish.index, finish.reason);
}

// Before the head of a stream is sent an error is an HTTP status; afterwards it is an event.
void Answer::fail(const ApiError& error) {
  if (closed_) return;
  if (streaming_) {
    flush_all();
    exchange_->write(std::move(out_) + "data: " + error_body(error) + "\n\ndata: [DONE]\n\n");
    exchange_->end_stream();
    out_.clear();
  } else {
    HttpResponse response = error_response(error);
    response.headers.insert(response.headers.end(), plan_.headers.begin(), plan_.headers.end());
    exchange_->respond(std::move(response));
  }
  close(error.status, error.code.c_str());
}

void Answer::complete() {
  if (streaming_) {
    std::string end;
    if (plan_.shape.include_usage) append_usage_chunk(end, plan_.shape, usage_);
    exchange_->write(end + "data: [DONE]\n\n");
    exchange_->end_stream();
  } else {
    std::vector<Choice> choices;
    for (Part& part : parts_) choices.push_back({std::move(part.text), part.logprobs.text(), part.reason});
    HttpResponse response;
    response.headers = plan_.headers;
    response.body = answer_body(plan_.shape, choices, usage_);
    exchange_->respond(std::move(response));
  }
  close(200, finish_word(parts_[0].reason));
}

void Answer::client_gone() {
  if (closed_) return;
  ++context_.metrics->disconnects;
  cancel();
  close(499, "client_gone");
}

void Answer::close(int status, const char* reason) {
  closed_ = true;
  parts_.clear();
  parts_.resize(static_cast<size_t>(plan_.n), {"", LogprobText(plan_.shape.chat)});
  context_.metrics->count_response(plan_.path, status);
  const double total = std::chrono::duration<double>(Clock::now() - arrival_).count();
  log_info("request", {{"id", request_id_},
                       {"path", plan_.path},
                       {"status", status},
                       {"client", plan_.client},
                       {"reason", reason},
                       {"stream", plan_.stream ? "true" : "false"},
                       {"prompt_tokens", usage_.prompt_tokens},
                       {"image_tokens", usage_.image_tokens},
                       {"completion_tokens", usage_.completion_tokens},
                       {"first_token_s", first_token_s_},
                       {"seconds", total}});
}

}  // namespace tessera::server
