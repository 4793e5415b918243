#include "pipeline/chat_engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/memory_info.h"
#include "core/thread_pool.h"
#include "pipeline/answer_stream.h"
#include "pipeline/sampling.h"

namespace tessera {
namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t text_bytes(const Request& request) {
  auto bytes = static_cast<int64_t>(request.prompt.size());
  for (const Message& message : request.messages)
    for (const ContentPart& part : message.content) bytes += static_cast<int64_t>(part.text.size());
  return bytes;
}

// `answers`: one before on_prompt, the request's n after it.
void finish_early(const std::shared_ptr<Listener>& listener, FinishReason reason, const Status& status, int answers = 1) {
  try {
    for (int i = 0; i < answers; ++i) {
      Finish finish;
      finish.index = i;
      finish.reason = reason;
      finish.status = status;
      listener->on_finish(finish);
    }
  } catch (...) {
    // The listener's own failure ends its request, which has just ended.
  }
}

}  // namespace

Result<ModelWords> load_words(const std::string& directory, const ModelConfig& config) {
  ModelWords words;
  TESSERA_ASSIGN_OR_RETURN(words.tokenizer, Tokenizer::load(directory));
  TESSERA_ASSIGN_OR_RETURN(words.chat, ChatTemplate::load(*words.tokenizer, directory, config.format));
  words.stop_ids = words.chat->stop_ids();
  for (int32_t id : config.eos_ids)
    if (std::find(words.stop_ids.begin(), words.stop_ids.end(), id) == words.stop_ids.end()) words.stop_ids.push_back(id);
  for (int32_t id = 0; id < words.tokenizer->vocab_size(); ++id) {
    if (words.tokenizer->has_piece(id))
      words.longest_piece = std::max(words.longest_piece, words.tokenizer->token_bytes(id).size());
    else
      words.holes.push_back(id);
  }
  return words;
}

ChatEngine::ChatEngine(ModelInfo info, ModelConfig config, ModelWords words, const EngineOptions& options,
                       std::unique_ptr<Backend> backend, std::unique_ptr<TokenEngine> engine, const HostMemory& host)
    : info_(std::move(info)),
      config_(std::move(config)),
      words_(std::move(words)),
      tiles_(host.tiles, static_cast<size_t>(3 * info_.image_size * info_.image_size), host.tile_slots),
      pictures_(config_, options, tiles_),
      backend_(std::move(backend)),
      engine_(std::move(engine)),
      workers_(std::clamp(available_cores() / 2, 1, 8), options.max_queue, host.preparation_bytes) {}

ChatEngine::~ChatEngine() {
  tiles_.stop();  // a worker may wait there
  workers_.stop();
  engine_->stop();
}

Status ChatEngine::Job::given_up() const {
  if (*cancelled) return {StatusCode::kCancelled, "cancelled by its owner"};
  if (request.deadline_s && seconds_now() - submitted_s >= *request.deadline_s)
    return {StatusCode::kDeadline, "the request's deadline passed before its turn to be prepared"};
  return {};
}

std::pair<RequestId, Status> ChatEngine::submit(Request request, std::shared_ptr<Listener> listener) {
  if (Status status = check_request(request); !status.ok()) return {0, status};
  auto job = std::make_shared<Job>();
  const RequestId id = job->id = next_id_.fetch_add(1);
  job->listener = std::move(listener);
  job->submitted_s = seconds_now();
  WorkerPool::Cost cost{.held_bytes = text_bytes(request),
                        .working_bytes = pictures_.decoding_bytes(request.images)};
  for (const ImageInput& image : request.images) cost.held_bytes += static_cast<int64_t>(image.bytes.size());
  const auto kind = request.images.empty() ? WorkerPool::Kind::kText : WorkerPool::Kind::kPictures;
  const int priority = request.priority;
  job->request = std::move(request);
  {
    std::lock_guard lock(mutex_);
    job->cancelled = tickets_[id].cancelled;
  }
  if (workers_.submit(kind, priority, cost, [this, job](bool stopping) { run(*job, stopping); })) return {id, Status()};
  forget(id);
  return {0, unavailable("the queue is full; try again later or raise --max-queue or --preparation-memory")};
}

void ChatEngine::cancel(RequestId id) {
  std::optional<uint64_t> token_id;
  {
    std::lock_guard lock(mutex_);
    auto found = tickets_.find(id);
    if (found == tickets_.end()) return;
    *found->second.cancelled = true;
    token_id = found->second.token_id;
  }
  if (token_id)
    engine_->cancel(*token_id);
  else
    tiles_.wake();  // it may wait there for room
}

void ChatEngine::forget(RequestId id) {
  std::lock_guard lock(mutex_);
  tickets_.erase(id);
}

void ChatEngine::run(const Job& job, bool stopping) {
  const double begin = seconds_now();
  Status status = stopping ? Status(StatusCode::kCancelled, "the engine stops") : job.given_up();
  try {
    if (status.ok()) {
      auto prepared = prepare(job);
      const double preprocess_s = seconds_now() - begin;
      preprocess_us_ += static_cast<int64_t>(preprocess_s * 1e6);
      // A place in the queue first: who has heard of a prompt is not refused any more.
      status = prepared.ok() ? engine_->reserve(prepared->tokens) : prepared.status();
      if (status.ok()) return start(job, std::move(*prepared), preprocess_s);
      if (status.code() == StatusCode::kCancelled && !job.given_up().ok()) status = job.given_up();
    }
  } catch (const std::exception& error) {
    status = internal_error(std::string("preparing the request failed: ") + error.what());
  }
  const bool cancelled = status.code() == StatusCode::kCancelled, late = status.code() == StatusCode::kDeadline;
  failed_before_start_ += !cancelled;
  forget(job.id);
  finish_early(job.listener, cancelled || late ? FinishReason::kCancelled : FinishReason::kError, cancelled ? Status() : status);
}

void ChatEngine::start(const Job& job, Prepared prepared, double preprocess_s) {
  const Request& request = job.request;
  const auto give_back = [](TokenEngine* engine) { engine->give_back(); };
  std::unique_ptr<TokenEngine, decltype(give_back)> place(engine_.get(), give_back);  // until a request takes it
  job.listener->on_prompt(prepared.prompt);
  if (request.deadline_s) prepared.tokens.deadline_s = *request.deadline_s - (seconds_now() - job.submitted_s);
  AnswerStream::Options options{.answers = request.n,
                                .stop = request.stop,
                                .stop_ids = prepared.tokens.stop_ids,
                                .logprobs = prepared.tokens.logprobs,
                                .decode = prepared.decode,
                                .preprocess_s = preprocess_s,
                                .on_end = [this, id = job.id] { forget(id); }};
  auto stream = std::make_shared<AnswerStream>(*words_.tokenizer, std::move(options), job.listener);
  Status status;
  bool gone = false;
  {
    // Held across submit, so that a cancel() finds either the mark or the engine's id.
    std::lock_guard lock(mutex_);
    auto ticket = tickets_.find(job.id);
    gone = ticket == tickets_.end() || *job.cancelled;
    if (!gone) {
      auto token_id = engine_->submit_reserved(std::move(prepared.tokens), std::move(stream));
      if (token_id.ok()) {
        place.release();
        ticket->second.token_id = *token_id;
      } else {
        status = token_id.status();
      }
    }
    if (gone || !status.ok()) tickets_.erase(job.id);
  }
  if (gone) return finish_early(job.listener, FinishReason::kCancelled, {}, request.n);
  if (status.ok()) return;
  ++failed_before_start_;
  finish_early(job.listener, FinishReason::kError, status, request.n);
}

Result<RenderedPrompt> ChatEngine::render(const Request& request, std::vector<int64_t>* tiles) const {
  if (request.messages.empty()) {
    if (request.prompt.empty()) return invalid_input("the prompt is empty; expected text");
    if (!request.images.empty()) return invalid_input("a raw prompt takes no pictures; send messages");
    RenderedPrompt rendered;
    if (const auto bos = words_.tokenizer->add_bos()) rendered.ids.push_back(*bos);
    const auto ids = request.parse_special ? words_.tokenizer->encode_with_special(request.prompt)
                                           : words_.tokenizer->encode(request.prompt);
    rendered.ids.insert(rendered.ids.end(), ids.begin(), ids.end());
    return rendered;
  }
  std::vector<int64_t> image_tokens;
  for (const ImageInput& image : request.images) {
    TESSERA_ASSIGN_OR_RETURN(int64_t count, pictures_.count_tiles(image));
    tiles->push_back(count);
    image_tokens.push_back(count * info_.tokens_per_tile);
  }
  const RenderOptions options{.image_placeholders = request.image_placeholders,
                              .markup_tokens = request.markup_tokens,
                              .generation_prompt = true};
  return words_.chat->render(request.messages, image_tokens, options);
}

// Before it is tokenized: what no session could hold need not be counted. Composed characters are shorter than what they
// are composed of, by less than four times.
Status ChatEngine::check_text(const Request& request) const {
  const int64_t bytes = text_bytes(request);
  const int64_t most = 4 * info_.session_len * static_cast<int64_t>(words_.longest_piece);
  if (bytes <= most) return {};
  return too_long("the prompt has " + std::to_string(bytes) + " bytes of text; session_len is " +
                  std::to_string(info_.session_len) + " tokens, which hold less than " + std::to_string(most));
}

Status ChatEngine::check_length(const Request& request, int64_t prompt_tokens, int64_t tiles) const {
  if (prompt_tokens < info_.session_len) return {};
  std::string message = "the prompt has " + std::to_string(prompt_tokens) + " tokens";
  if (!request.images.empty()) message += " (" + std::to_string(tiles) + " tiles of pictures)";
  message += "; session_len is " + std::to_string(info_.session_len) + " and one new token needs room: raise --session-len";
  if (!request.images.empty()) message += " or lower --max-dynamic-patch";
  return too_long(message);
}

Status ChatEngine::add_pictures(const Job& job, const RenderedPrompt& rendered, Prepared* out) {
  if (job.request.images.empty()) return {};
  TESSERA_ASSIGN_OR_RETURN(const std::vector<PreparedPicture> pictures,
                           pictures_.prepare(job.request.images, job.request.cache_salt,
                                             [&] { return !job.given_up().ok(); }));
  for (const PreparedPicture& picture : pictures) out->prompt.images.push_back(picture.info);
  for (const ImageSpan& span : rendered.images) {
    const PreparedPicture& picture = pictures.at(static_cast<size_t>(span.image_index));
    const int64_t tokens = picture.info.tiles * info_.tokens_per_tile;
    TESSERA_CHECK(tokens == span.count, "a picture's header and its pixels disagree about the tiles");
    out->tokens.images.push_back({.key = picture.key,
                                  .first = span.first,
                                  .tokens = span.count,
                                  .tiles = picture.info.tiles,
                                  .pixels = picture.tiles});
    out->prompt.image_tokens += span.count;
  }
  return {};
}

std::shared_ptr<const GrammarVocabulary> ChatEngine::grammar_vocabulary() {
  std::call_once(vocabulary_once_, [this] { vocabulary_ = std::make_shared<GrammarVocabulary>(*words_.tokenizer); });
  return vocabulary_;
}

Status ChatEngine::add_constraint(const Request& request, TokenRequest* tokens) {
  const ResponseFormat& format = request.response_format;
  if (format.kind == ResponseFormat::Kind::kText) return {};
  std::shared_ptr<const JsonGrammar> grammar;
  if (format.kind == ResponseFormat::Kind::kJsonObject) {
    grammar = JsonGrammar::any_object(grammar_vocabulary());
  } else {
    auto schema = Json::parse(format.schema);
    if (!schema.ok()) return schema.status().with_context("response_format: the schema");
    auto compiled = JsonGrammar::from_schema(*schema, grammar_vocabulary());
    if (!compiled.ok()) return compiled.status().with_context("response_format");
    grammar = std::move(*compiled);
  }
  tokens->constraint = [grammar, ends = words_.stop_ids] { return grammar->start(ends); };
  return {};
}

Result<ChatEngine::Prepared> ChatEngine::prepare(const Job& job) {
  const Request& request = job.request;
  Prepared out;
  TESSERA_RETURN_IF_ERROR(check_text(request));
  std::vector<int64_t> tiles;
  TESSERA_ASSIGN_OR_RETURN(RenderedPrompt rendered, render(request, &tiles));
  int64_t all_tiles = 0;
  for (int64_t count : tiles) all_tiles += count;
  const auto prompt_tokens = static_cast<int64_t>(rendered.ids.size());
  TESSERA_RETURN_IF_ERROR(check_length(request, prompt_tokens, all_tiles));
  for (int32_t id : rendered.ids)
    if (id >= config_.language.vocab)
      return invalid_input("token " + std::to_string(id) + " of the prompt is outside the model's " +
                           std::to_string(config_.language.vocab) + " embeddings");
  TESSERA_RETURN_IF_ERROR(add_pictures(job, rendered, &out));
  TESSERA_ASSIGN_OR_RETURN(out.decode.visible_control, words_.chat->markup_ids(request.markup_tokens));
  TESSERA_RETURN_IF_ERROR(add_constraint(request, &out.tokens));
  resolve_sampling(request, config_.generation, next_id_.load(), out.tokens);
  for (int32_t id : words_.holes) out.tokens.logit_bias.emplace_back(id, -1e30f);
  out.prompt.prompt_tokens = prompt_tokens;
  out.tokens.prompt = std::move(rendered.ids);
  const int64_t room = info_.session_len - prompt_tokens;
  out.tokens.max_new_tokens = std::min(request.max_new_tokens.value_or(room), room);
  if (!request.ignore_eos) out.tokens.stop_ids = words_.stop_ids;
  out.tokens.n = request.n;
  out.tokens.cache_salt = request.cache_salt;
  out.tokens.client = request.client;
  out.tokens.priority = request.priority;
  return out;
}

EngineStats ChatEngine::stats() const {
  EngineStats stats = engine_->stats();
  stats.preparing = workers_.pending();
  stats.requests_failed += failed_before_start_.load();
  stats.tile_cache_hits = tiles_.hits();
  stats.preprocess_s = static_cast<double>(preprocess_us_.load()) * 1e-6;
  const int64_t peak = backend_->limits().kind == "cpu" ? peak_resident_bytes() : backend_->peak_bytes();
  stats.device_peak_bytes.emplace_back(backend_->limits().name, peak);
  return stats;
}

std::pair<std::vector<int32_t>, Status> ChatEngine::tokenize(const Request& request) {
  if (Status status = check_request(request); !status.ok()) return {{}, status};
  if (request.messages.empty()) {
    const auto& text = request.prompt;
    return {request.parse_special ? words_.tokenizer->encode_with_special(text) : words_.tokenizer->encode(text), {}};
  }
  std::vector<int64_t> tiles;
  auto rendered = render(request, &tiles);
  if (!rendered.ok()) return {{}, rendered.status()};
  return {std::move(rendered->ids), {}};
}

std::pair<std::string, Status> ChatEngine::detokenize(const std::vector<int32_t>& ids) {
  for (int32_t id : ids)
    if (id < 0 || id >= words_.tokenizer->vocab_size())
      return {"", invalid_input("token id " + std::to_string(id) + " is outside 0.." +
                                std::to_string(words_.tokenizer->vocab_size() - 1))};
  return {words_.tokenizer->decode(ids), {}};
}

std::string ChatEngine::piece(int32_t id) {
  if (id < 0 || id >= words_.tokenizer->vocab_size()) return {};
  return words_.tokenizer->token_bytes(id);
}

}  // namespace tessera
