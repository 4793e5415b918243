#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <variant>
#include <vector>

#include "server/api_error.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/openai_output.h"
#include "tessera/engine.h"

namespace tessera::server {

class Answer;

/// The answers under way, so that a shutdown can end them. Thread-safe.
class ActiveAnswers {
 public:
  void add(const std::shared_ptr<Answer>& answer);
  void remove(const Answer* answer);
  size_t count() const;
  void cancel_all();

 private:
  mutable std::mutex mutex_;
  std::unordered_map<const Answer*, std::weak_ptr<Answer>> answers_;
};

/// What answers share. The engine outlives every callback and every connection's strand (Server sees to the
/// order).
struct AnswerContext {
  Engine* engine = nullptr;
  Metrics* metrics = nullptr;
  ActiveAnswers* active = nullptr;
  const std::atomic<bool>* draining = nullptr;
};

/// How one answer is to be written, and for whom.
struct AnswerPlan {
  AnswerShape shape;
  bool stream = false;
  int n = 1;
  int top_logprobs = -1;
  std::string client;          ///< for the log
  std::string path;            ///< the route
  Headers headers;             ///< of the response
  std::shared_ptr<void> slot;  ///< the client's place, held until the engine is done
};

/// Carries one request's results from the engine to its client. The engine's thread only queues what
/// happened; the connection's strand turns it into text: an event a token, or, for a client that has fallen behind, one
/// event for all tokens that it missed.
class Answer : public Listener, public std::enable_shared_from_this<Answer> {
 public:
  Answer(const AnswerContext& context, AnswerPlan plan, std::shared_ptr<Exchange> exchange);
  ~Answer() override;

  /// Hands the request to the engine, or answers with its refusal. Call once.
  void submit(Request request);
  /// Ends the request in the engine. Any thread.
  void cancel();

  void on_prompt(const PromptInfo& info) override;
  void on_delta(const Delta& delta) override;
  void on_finish(const Finish& finish) override;

 private:
  using Clock = std::chrono::steady_clock;
  struct Event {
    Clock::time_point when;
    std::variant<PromptInfo, Delta, Finish> what;
  };
  struct Part {  // one of the n answers
    std::string text;  // of a stream: what has not been written yet, like logprobs
    LogprobText logprobs;
    bool begun = false;
    bool finished = false;
    FinishReason reason = FinishReason::kStop;
    Clock::time_point last_token{};
  };

  void push(Event event);
  void drain();  // this and what follows: on the strand
  void handle(const PromptInfo& info);
  void handle(const Delta& delta, Clock::time_point when);
  void handle(const Finish& finish, Clock::time_point when);
  void observe_tokens(Part& part, const Delta& delta, Clock::time_point when);
  void begin_stream();
  void flush(int index);
  void flush_all();
  void catch_up();
  size_t held_bytes() const;
  void fail(const ApiError& error);
  void complete();
  void client_gone();
  void close(int status, const char* reason);

  const AnswerContext context_;
  AnswerPlan plan_;
  std::shared_ptr<Exchange> exchange_;
  const Clock::time_point arrival_ = Clock::now();
  std::string request_id_;

  std::mutex mutex_;  // guards these four
  std::vector<Event> queue_;
  bool scheduled_ = false;
  RequestId engine_id_ = 0;
  bool cancel_wanted_ = false;

  std::string out_;  // SSE text of one drain
  std::vector<Part> parts_;
  Usage usage_;
  double first_token_s_ = -1;
  size_t answer_bytes_ = 0;
  int unfinished_;
  bool streaming_ = false;
  bool behind_ = false;  // the client leaves much unread: text is gathered
  bool closed_ = false;  // the client has its answer, or is gone
};

}  // namespace tessera::server
