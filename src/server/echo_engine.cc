#include "server/echo_engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "server/json_text.h"

namespace tessera::server {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kTokensPerImage = 256;

std::string utf8(int32_t id) {
  const auto c = static_cast<uint32_t>(id);
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
  if (c >= 0xD800 && c < 0xE000) return "\xEF\xBF\xBD";
  if (c < 0x10000)
    return {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
            static_cast<char>(0x80 | (c & 63))};
  return {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
          static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
}

std::vector<int32_t> code_points(std::string_view text) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text, i);
    uint32_t c = static_cast<unsigned char>(text[i]);
    if (length > 1) c &= 0x7Fu >> length;
    for (size_t k = 1; k < length; ++k) c = c << 6 | (static_cast<unsigned char>(text[i + k]) & 63);
    ids.push_back(length ? static_cast<int32_t>(c) : 0xFFFD);
    i += length ? length : 1;
  }
  return ids;
}

bool looks_like_picture(const std::string& bytes) {
  for (std::string_view magic : {std::string_view("\x89PNG\r\n\x1a\n"), std::string_view("\xFF\xD8\xFF"),
                                 std::string_view("GIF8"), std::string_view("BM"), std::string_view("RIFF")})
    if (bytes.compare(0, magic.size(), magic) == 0) return true;
  return false;
}

std::string prompt_text(const Request& request) {
  if (request.messages.empty()) return request.prompt;
  std::string text;
  for (auto message = request.messages.rbegin(); message != request.messages.rend() && text.empty();
       ++message)
    if (message->role == "user")
      for (const ContentPart& part : message->content) text += part.image < 0 ? part.text : "";
  return text;
}

int64_t all_prompt_tokens(const Request& request) {
  size_t tokens = code_points(request.prompt).size();
  for (const Message& message : request.messages)
    for (const ContentPart& part : message.content) tokens += code_points(part.text).size();
  return static_cast<int64_t>(tokens) + static_cast<int64_t>(request.images.size()) * kTokensPerImage;
}

struct Running {
  RequestId id = 0;
  std::shared_ptr<Listener> listener;
  std::vector<int32_t> answer;
  std::string held;  // text that may be the beginning of a stop string
  std::vector<std::string> stop;
  int n = 1, logprobs = -1;
  bool ignore_eos = false, cancelled = false, prompted = false;
  int64_t limit = 0, made = 0, prompt_tokens = 0;
  Status failure;
  PromptInfo info;
  Clock::time_point submitted, ready;
  std::optional<Clock::time_point> deadline;
};

class EchoEngine : public Engine {
 public:
  explicit EchoEngine(const EchoOptions& options) : options_(options), thread_([this] { run(); }) {}
  ~EchoEngine() override {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  std::pair<RequestId, Status> submit(Request request, std::shared_ptr<Listener> listener) override;
  void cancel(RequestId id) override {
    std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
  }
  ModelInfo model() const override {
    return {.name = "echo",
            .session_len = options_.session_len,
            .tokens_per_tile = kTokensPerImage,
            .image_size = 448,
            .max_dynamic_patch = 12,
            .max_tiles_per_request = 64,
            .kv_cache_tokens = kv_tokens()};
  }
  EngineStats stats() const override;
  std::pair<std::vector<int32_t>, Status> tokenize(const Request& request) override;
  std::pair<std::string, Status> detokenize(const std::vector<int32_t>& ids) override;
  std::string piece(int32_t id) override { return id >= 0 && id <= 0x10FFFF ? utf8(id) : std::string(); }

 private:
  int64_t kv_tokens() const { return options_.session_len * 16; }
  void run();
  void admit();
  void apply_cancels();
  bool step(Running& one);
  void emit(Running& one, int32_t token);
  void finish(Running& one, FinishReason reason, Status status = {});

  const EchoOptions options_;
  mutable std::mutex mutex_;  // guards what follows, up to stats_
  std::condition_variable wake_;
  std::deque<Running> waiting_;
  std::vector<RequestId> cancelled_;
  bool ending_ = false;
  RequestId next_id_ = 1;
  EngineStats stats_;
  std::vector<Running> running_;  // the thread's own, as the next two
  int64_t ended_ = 0;             // requests
  bool told_ = false;             // of a lost device
  std::thread thread_;
};

std::pair<RequestId, Status> EchoEngine::submit(Request request, std::shared_ptr<Listener> listener) {
  Running one;
  std::string text = prompt_text(request);
  if (request.response_format.kind == ResponseFormat::Kind::kJsonSchema)
    return {0, invalid_input("[echo] response_format json_schema needs a model; mock:echo has none")};
  if (request.response_format.kind == ResponseFormat::Kind::kJsonObject) {
    std::string quoted;
    append_json_string(quoted, text);
    text = "{\"echo\": " + quoted + "}";
  }
  one.answer = code_points(text);
  one.prompt_tokens = all_prompt_tokens(request);
  if (one.prompt_tokens > options_.session_len)
    return {0, too_long("[echo] prompt of " + std::to_string(one.prompt_tokens) +
                            " tokens exceeds session_len " + std::to_string(options_.session_len) +
                            "; send less or raise --session-len")};
  for (size_t i = 0; i < request.images.size() && one.failure.ok(); ++i) {
    if (!looks_like_picture(request.images[i].bytes))
      one.failure = unprocessable("[vision] picture " + std::to_string(i + 1) + " is in no known format");
    one.info.images.push_back({.width = 448, .height = 448, .columns = 1, .rows = 1, .tiles = 1});
  }
  one.info.prompt_tokens = one.prompt_tokens;
  one.info.image_tokens = static_cast<int64_t>(request.images.size()) * kTokensPerImage;
  one.listener = std::move(listener);
  one.stop = std::move(request.stop);
  one.n = request.n;
  one.logprobs = request.logprobs;
  one.ignore_eos = request.ignore_eos && !one.answer.empty();
  const int64_t room = options_.session_len - one.prompt_tokens;
  one.limit = std::min(request.max_new_tokens.value_or(room), room);
  one.submitted = Clock::now();
  one.ready = one.submitted + std::chrono::microseconds(options_.prompt_us);
  if (request.deadline_s)
    one.deadline = one.submitted + std::chrono::microseconds(static_cast<int64_t>(*request.deadline_s * 1e6));
  std::lock_guard lock(mutex_);
  if (static_cast<int64_t>(waiting_.size()) >= options_.max_queue)
    return {0, unavailable("[echo] " + std::to_string(waiting_.size()) +
                           " requests are waiting, the limit; try again later")};
  one.id = next_id_++;
  const RequestId id = one.id;
  waiting_.push_back(std::move(one));
  wake_.notify_all();
  return {id, {}};
}

void EchoEngine::run() {
  auto next = Clock::now();
  std::unique_lock lock(mutex_);
  while (!ending_) {
    if (running_.empty() && waiting_.empty()) {
      cancelled_.clear();
      wake_.wait(lock);
      next = Clock::now();
      continue;
    }
    admit();
    apply_cancels();
    ++stats_.steps;
    lock.unlock();
    running_.erase(
        std::remove_if(running_.begin(), running_.end(), [this](Running& one) { return step(one); }),
        running_.end());
    next = std::max(next + std::chrono::microseconds(options_.step_us), Clock::now());
    lock.lock();
    stats_.running = static_cast<int64_t>(running_.size());
    if (!running_.empty() && options_.step_us > 0) wake_.wait_until(lock, next, [this] { return ending_; });
  }
  lock.unlock();
  for (Running& one : running_) finish(one, FinishReason::kCancelled);
  for (Running& one : waiting_) finish(one, FinishReason::kCancelled);
}

void EchoEngine::admit() {
  while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < options_.max_running) {
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

void EchoEngine::apply_cancels() {
  auto mark = [this](auto& list) {
    for (Running& one : list)
      if (std::find(cancelled_.begin(), cancelled_.end(), one.id) != cancelled_.end()) one.cancelled = true;
  };
  if (cancelled_.empty()) return;
  mark(running_);
  mark(waiting_);
  cancelled_.clear();
}

// One token of one request; true when the request is over.
bool EchoEngine::step(Running& one) {
  const auto now = Clock::now();
  if (one.cancelled) {
    finish(one, FinishReason::kCancelled);
    return true;
  }
  if (one.deadline && now >= *one.deadline) {
    finish(one, FinishReason::kCancelled, {StatusCode::kDeadline, "[echo] the request's deadline passed"});
    return true;
  }
  if (now < one.ready) return false;
  if (!one.failure.ok()) {
    one.n = 1;
    finish(one, FinishReason::kError, one.failure);
    return true;
  }
  if (!one.prompted) {
    one.prompted = true;
    one.listener->on_prompt(one.info);
  }
  if (options_.lost_after >= 0 && ended_ >= options_.lost_after) {
    const Status loss = internal_error("the device is lost: [echo] as it was told to");
    finish(one, FinishReason::kError, loss);
    if (!std::exchange(told_, true) && options_.on_lost) options_.on_lost(loss);
    return true;
  }
  if (options_.fail_after >= 0 && one.made >= options_.fail_after) {
    finish(one, FinishReason::kError, internal_error("[echo] failed as it was told to"));
    return true;
  }
  if (one.made >= one.limit) {
    finish(one, FinishReason::kLength);
    return true;
  }
  const auto size = static_cast<int64_t>(one.answer.size());
  if (one.made >= size && !one.ignore_eos) {
    finish(one, FinishReason::kStop);
    return true;
  }
  emit(one, one.answer[static_cast<size_t>(one.made % size)]);
  return one.n == 0;
}

// Text leaves only when it can't become a stop string any more.
void EchoEngine::emit(Running& one, int32_t token) {
  ++one.made;
  one.held += utf8(token);
  bool stopped = false;
  for (const std::string& stop : one.stop)
    if (const size_t at = one.held.find(stop); at != std::string::npos) {
      one.held.resize(at);
      stopped = true;
    }
  size_t keep = 0;
  for (const std::string& stop : one.stop)
    for (size_t k = std::min(stop.size() - 1, one.held.size()); !stopped && k > keep; --k)
      if (one.held.compare(one.held.size() - k, k, stop, 0, k) == 0) keep = k;
  Delta delta;
  delta.text = one.held.substr(0, one.held.size() - keep);
  one.held.erase(0, delta.text.size());
  delta.token_ids = {token};
  if (one.logprobs >= 0) {
    TokenLogprob logprob{.token_id = token, .logprob = -0.25};
    for (int k = 0; k < one.logprobs; ++k) logprob.top.emplace_back(token + k, -0.25 - k);
    delta.logprobs = {logprob};
  }
  for (int index = 0; index < one.n; ++index) {
    delta.index = index;
    one.listener->on_delta(delta);
  }
  {
    std::lock_guard lock(mutex_);
    stats_.generated_tokens += static_cast<uint64_t>(one.n);
  }
  if (stopped) {
    finish(one, FinishReason::kStop);
    one.n = 0;  // over
  }
}

void EchoEngine::finish(Running& one, FinishReason reason, Status status) {
  {
    std::lock_guard lock(mutex_);
    ++(reason == FinishReason::kError ? stats_.requests_failed : stats_.requests_finished);
    stats_.prompt_tokens += static_cast<uint64_t>(one.prompt_tokens);
  }
  ++ended_;
  for (int index = 0; index < one.n; ++index) {
    if (!one.held.empty()) one.listener->on_delta({.index = index, .text = one.held});
    Finish done{.index = index, .reason = reason, .status = status, .completion_tokens = one.made};
    done.timings.decode_s = std::chrono::duration<double>(Clock::now() - one.submitted).count();
    one.listener->on_finish(done);
  }
}

EngineStats EchoEngine::stats() const {
  std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.waiting = static_cast<int64_t>(waiting_.size());
  stats.kv_blocks_total = kv_tokens() / 64;
  stats.memory_planned = {{"kv_cache", 0}};
  stats.memory_used = {{"kv_cache", 0}};
  return stats;
}

std::pair<std::vector<int32_t>, Status> EchoEngine::tokenize(const Request& request) {
  if (request.messages.empty()) return {code_points(request.prompt), {}};
  std::vector<int32_t> ids;
  for (const Message& message : request.messages)
    for (const ContentPart& part : message.content) {
      if (part.image >= 0 && !looks_like_picture(request.images[static_cast<size_t>(part.image)].bytes))
        return {
            {},
            unprocessable("[vision] picture " + std::to_string(part.image + 1) + " is in no known format")};
      if (part.image >= 0) ids.insert(ids.end(), kTokensPerImage, 0xFFFC);
      const auto text = code_points(part.text);
      ids.insert(ids.end(), text.begin(), text.end());
    }
  return {ids, {}};
}

std::pair<std::string, Status> EchoEngine::detokenize(const std::vector<int32_t>& ids) {
  std::string text;
  for (int32_t id : ids) {
    if (id < 0 || id > 0x10FFFF)
      return {"", invalid_input("[echo] token id " + std::to_string(id) +
                                " is not below 1114112, the vocabulary's size")};
    text += utf8(id);
  }
  return {text, {}};
}

}  // namespace

Result<EchoOptions> parse_echo_options(const std::string& text) {
  EchoOptions options;
  const std::map<std::string, int64_t*> fields = {
      {"session_len", &options.session_len}, {"max_queue", &options.max_queue},
      {"max_running", &options.max_running}, {"step_us", &options.step_us},
      {"prompt_us", &options.prompt_us},     {"fail_after", &options.fail_after},
      {"load_ms", &options.load_ms},         {"lost_after", &options.lost_after}};
  if (text.empty()) return options;
  if (text[0] != '?')
    return invalid_input("[serve] mock:echo" + text +
                         " is unknown; expected mock:echo or mock:echo?NAME=VALUE&...");
  for (size_t at = 1; at < text.size();) {
    const size_t end = std::min(text.find('&', at), text.size());
    const std::string item = text.substr(at, end - at);
    const size_t equals = item.find('=');
    const auto field = fields.find(item.substr(0, equals));
    const std::string value = equals == std::string::npos ? "" : item.substr(equals + 1);
    if (field == fields.end() || value.empty() || value.size() > 9 ||
        value.find_first_not_of("0123456789") != std::string::npos)
      return invalid_input("[serve] mock:echo option \"" + item + "\" is unknown or no number");
    *field->second = std::stoll(value);
    at = end + 1;
  }
  if (options.session_len < 1 || options.max_running < 1)
    return invalid_input("[serve] mock:echo session_len and max_running must be at least 1");
  return options;
}

std::unique_ptr<Engine> make_echo_engine(const EchoOptions& options) {
  return std::make_unique<EchoEngine>(options);
}

}  // namespace tessera::server
