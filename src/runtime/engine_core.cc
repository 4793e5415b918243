#include "runtime/engine_core.h"

#include <algorithm>
#include <chrono>

#include "core/check.h"

namespace tessera {

namespace {

// The wait where none is asked for. A CPU's smallest useful piece of a prompt or a tower takes longer than a GPU's whole
// step: its streams wait longer.
constexpr double kDecodeWait_s = 0.025, kCpuDecodeWait_s = 0.25;

std::string request_name(const Sequence& s) { return "request " + std::to_string(s.request->id) + ": "; }

// Steps are planned for this share of the wait: what they take is known to about a tenth.
constexpr double kPlannedShare = 0.9;

double decode_wait(const Backend& backend, std::optional<double> asked) {
  return kPlannedShare * asked.value_or(backend.limits().kind == "cpu" ? kCpuDecodeWait_s : kDecodeWait_s);
}

// A GPU's products are computed in tiles of 128 rows.
int64_t row_multiple(const Backend& backend) { return backend.limits().kind == "cpu" ? 16 : 128; }

}  // namespace

EngineCore::EngineCore(Backend& backend, EngineMemory memory, TokenEngineOptions options, Inbox& inbox)
    : backend_(backend),
      memory_(std::move(memory)),
      options_(std::move(options)),
      inbox_(inbox),
      pool_(memory_.shape.kv_blocks),
      embeddings_(memory_.shape.embedding_tiles),
      vision_(backend_, memory_, embeddings_),
      language_(backend_, memory_, options_.valid_ids > 0 ? options_.valid_ids : memory_.model->config().language.vocab),
      hasher_(memory_.model->config().language.rope, memory_.shape.block_size) {
  limits_ = {.step_tokens = memory_.shape.step_tokens,
             .row_multiple = row_multiple(backend),
             .max_wait_s = decode_wait(backend, options_.max_decode_wait_s)};
  const auto sequences = static_cast<size_t>(memory_.shape.max_sequences);
  running_.reserve(sequences);
  born_.reserve(sequences);
  views_.reserve(sequences);
  targets_.reserve(sequences);
  plan_.items.reserve(sequences);
  event_.top.reserve(kMaxTopLogprobs);
  counters_.kv_blocks_total = pool_.total();
  if (!backend_.captures()) return;  // nothing is made lazily
  costs_ = language_.warm_up();
  if (memory_.model->vision_layers() > 0 && memory_.shape.vision_batch > 0) costs_.tile_layer_s = vision_.warm_up();
}

EngineCore::~EngineCore() = default;

double EngineCore::now() const {
  if (options_.clock) return options_.clock();
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool EngineCore::step() {
  try {
    return run_step();
  } catch (const std::exception& e) {  // a broken invariant of the bookkeeping: nobody's answer can be trusted
    note_failure(e.what());
    end_all(FinishReason::kError, internal_error(std::string("the engine failed: ") + e.what()));
    try {
      backend_.synchronize();  // the device may still read pixels
    } catch (const std::exception&) {  // it is lost and reads nothing
    }
    vision_.uploaded();
    return true;
  }
}

bool EngineCore::run_step() {
  const double time = now();
  if (running_.empty()) last_end_s_ = -1;
  take_inbox();
  expire(time);
  admit(time);
  want_pictures();
  make_room();
  vision_.prune();
  plan_step(views(), vision_.view(), limits_, costs_, plan_);
  const bool busy = !plan_.empty();
  TESSERA_CHECK(busy || running_.empty(), "a step found nothing to do for " + std::to_string(running_.size()) + " sequences");
  reserve();
  const int64_t tiles = encode_pictures();
  compute_language();
  charge_vision(tiles);
  vision_.uploaded();
  learn_overhead();
  sweep();
  counters_.steps += busy;
  publish_stats();
  return busy;
}

void EngineCore::take_inbox() {
  inbox_.take(messages_);
  for (auto& request : messages_.arrivals) arrive(std::move(request));
  for (const RequestId id : messages_.cancels)
    end_request(id, FinishReason::kCancelled, {StatusCode::kCancelled, "cancelled by its owner"});
  if (!messages_.cancels.empty()) sweep();
}

void EngineCore::expire(double time) {
  bool any = false;
  for (auto* sequences : {&waiting_, &running_})
    for (const SequencePtr& s : *sequences) {
      if (time < s->request->deadline_s) continue;
      end(*s, FinishReason::kCancelled, {StatusCode::kDeadline, "the request's deadline passed"});
      any = true;
    }
  if (any) sweep();
}

void EngineCore::make_room() {
  while (decode_blocks(views(), memory_.shape.block_size) > pool_.available())
    preempt(static_cast<size_t>(pick_victim(views())));
}

// Prompts got their blocks when they were admitted; a decoding sequence may step into a new one.
void EngineCore::reserve() {
  for (int64_t i = 0; i < plan_.decodes; ++i) {
    Sequence& s = *running_[static_cast<size_t>(plan_.items[static_cast<size_t>(i)].sequence)];
    if (s.computed >= static_cast<int64_t>(s.blocks.size()) * memory_.shape.block_size)
      s.blocks.push_back(pool_.allocate());
  }
}

// Returns the tiles of the slice.
int64_t EngineCore::encode_pictures() {
  backend_.mark(kStepBegin);
  if (plan_.vision_layers == 0) {
    backend_.mark(kVisionEnd);
    return 0;
  }
  if (plan_.new_pass_tiles > 0) vision_.take_tiles(plan_.new_pass_tiles);
  const int64_t tiles = vision_.view().pass_tiles;
  for (const SequencePtr& s : running_)
    s->encoding = std::any_of(s->pins.begin(), s->pins.end(),
                              [&](const EmbeddingPin& pin) { return pin && vision_.encoding(pin.get()); });
  try {
    vision_.run(plan_.vision_layers);
    backend_.mark(kVisionEnd);
    return tiles;
  } catch (const std::exception& e) {
    note_failure(e.what());
    fail_pictures(e.what());
  }
  if (!lost()) backend_.mark(kVisionEnd);
  return 0;
}

void EngineCore::fail_pictures(const std::string& why) {
  for (const SequencePtr& s : running_)
    if (s->encoding) end(*s, FinishReason::kError, internal_error(request_name(*s) + "a picture could not be encoded: " + why));
  vision_.abandon();
  drop_ended_items();
}

// The slice runs on while the language part is handed to the stream behind it; what it took is known when that is over.
void EngineCore::charge_vision(int64_t tiles) {
  if (tiles == 0 || lost()) return;
  double seconds = 0;
  try {
    seconds = backend_.seconds_between(kStepBegin, kVisionEnd);
  } catch (const std::exception& e) {
    note_failure(e.what());
    return fail_pictures(e.what());
  }
  counters_.encode_s += seconds;
  for (const SequencePtr& s : running_)
    if (s->encoding) s->request->timings.encode_s += seconds;
  StepCosts::learn(costs_.tile_layer_s, seconds / static_cast<double>(tiles * plan_.vision_layers));
}

// What passes between the ends of two steps beside the device's work is the host's part.
void EngineCore::learn_overhead() {
  if (!backend_.captures() || plan_.items.empty() || lost()) {
    last_end_s_ = -1;
    return;
  }
  const double end = now();
  const double host = end - last_end_s_ - backend_.seconds_between(kStepBegin, kStepEnd);
  if (last_end_s_ >= 0) StepCosts::learn(costs_.overhead_s, std::clamp(host, 0.0, limits_.max_wait_s));
  last_end_s_ = end;
}

void EngineCore::compute_language() {
  if (plan_.items.empty() || lost()) return;
  std::span<const SampledToken> samples;
  try {
    samples = language_.run(running_, plan_);
  } catch (const std::exception& e) {
    note_failure(e.what());
    fail_items(e.what());
    return;
  }
  charge(backend_.seconds_between(kVisionEnd, kStepEnd));
  commit(samples);
}

// Books a step's time: to its requests, to the counters, and to what the planner knows of costs.
void EngineCore::charge(double seconds) {
  const int64_t prompt_tokens = plan_.tokens - plan_.decodes;
  costs_.learn_step(plan_.decodes, prompt_tokens, seconds);
  (prompt_tokens > 0 ? counters_.prefill_s : counters_.decode_s) += seconds;
  for (const StepItem& item : plan_.items) {
    Sequence& s = *running_[static_cast<size_t>(item.sequence)];
    const bool decoding = s.computed >= s.prompt_length();
    (decoding ? s.request->timings.decode_s : s.request->timings.prefill_s) += seconds;
    s.request->client->served += static_cast<double>(item.tokens);
    s.request->kind->served += static_cast<double>(item.tokens);
  }
}

void EngineCore::commit(std::span<const SampledToken> samples) {
  targets_.clear();
  for (const StepItem& item : plan_.items) {
    Sequence& s = *running_[static_cast<size_t>(item.sequence)];
    s.computed += item.tokens;
    publish_blocks(s);
    if (!item.samples) continue;
    targets_.push_back(&s);
    if (s.answers > 1) fork(s);
  }
  for (size_t i = 0; i < samples.size(); ++i) accept(*targets_[i], samples[i]);
  for (SequencePtr& s : born_) running_.push_back(std::move(s));
  born_.clear();
}

// The prompt is computed: the other answers share its full blocks and own their copy of the last one.
void EngineCore::fork(Sequence& s) {
  const int64_t full = s.computed / memory_.shape.block_size;
  for (int answer = 1; answer < s.answers; ++answer) {
    auto child = std::make_unique<Sequence>();
    child->request = s.request;
    child->index = s.index + answer;
    child->computed = s.computed;
    child->published = s.published;
    child->chain = s.chain;
    child->tenure = ++last_tenure_;
    child->edits = s.edits;
    if (s.constraint) child->constraint = s.constraint->clone();
    child->blocks.reserve(static_cast<size_t>(memory_.shape.max_blocks_per_sequence()));
    for (int64_t b = 0; b < full; ++b) child->blocks.push_back(s.blocks[static_cast<size_t>(b)].share());
    child->blocks.push_back(std::move(s.spare[static_cast<size_t>(answer - 1)]));
    targets_.push_back(child.get());
    born_.push_back(std::move(child));
  }
  s.spare.clear();
  s.answers = 1;
}

void EngineCore::accept(Sequence& s, const SampledToken& sample) {
  if (s.ended) return;  // with its request, by a listener that failed for another answer
  const TokenRequest& request = s.request->request;
  s.generated.push_back(sample.id);
  s.edits.accept(sample.id);
  ++counters_.generated_tokens;
  if (s.constraint && !s.constraint->accept(sample.id))
    return end(s, FinishReason::kError, internal_error("the chosen token " + std::to_string(sample.id) + " breaks the answer's grammar"));
  const bool goes_on = tell(s, sample);
  if (s.ended) return;
  const bool stop = std::find(request.stop_ids.begin(), request.stop_ids.end(), sample.id) != request.stop_ids.end();
  if (!goes_on || stop || (s.constraint && s.constraint->finished())) return end(s, FinishReason::kStop, {});
  if (static_cast<int64_t>(s.generated.size()) >= request.max_new_tokens || s.length() >= memory_.shape.session_len)
    end(s, FinishReason::kLength, {});
}

// Hands a token to its listener; a listener that throws ends its request.
bool EngineCore::tell(Sequence& s, const SampledToken& sample) {
  const TokenRequest& request = s.request->request;
  event_.index = s.index;
  event_.id = sample.id;
  event_.logprob = sample.logprob;
  event_.top.clear();
  for (int i = 0; request.logprobs && i < request.sampling.top_logprobs; ++i)
    event_.top.emplace_back(sample.top_ids[i], sample.top_logprobs[i]);
  try {
    return s.request->listener->on_token(event_);
  } catch (const std::exception& e) {
    end_request(s.request->id, FinishReason::kError,
                internal_error(std::string("the request's listener failed: ") + e.what()));
  } catch (...) {
    end_request(s.request->id, FinishReason::kError, internal_error("the request's listener failed"));
  }
  return false;
}

void EngineCore::end_request(RequestId id, FinishReason reason, const Status& status) {
  for (auto* sequences : {&waiting_, &running_, &born_})
    for (const SequencePtr& s : *sequences)
      if (s && s->request->id == id) end(*s, reason, status);
}

void EngineCore::end(Sequence& s, FinishReason reason, Status status) {
  if (s.ended) return;
  s.ended = Ending{reason, status};
  s.release();
  clear_ = true;
  RequestState& request = *s.request;
  request.timings.queue_s = (request.admitted_s >= 0 ? request.admitted_s : now()) - request.submitted_s;
  request.failed = request.failed || reason == FinishReason::kCancelled || reason == FinishReason::kError;
  for (int answer = 0; answer < s.answers; ++answer) {
    Finish finish{.index = s.index + answer,
                  .reason = reason,
                  .status = status,
                  .completion_tokens = static_cast<int64_t>(s.generated.size()),
                  .cached_tokens = request.cached_tokens,
                  .timings = request.timings};
    try {
      request.listener->on_finish(finish);
    } catch (...) {  // nobody is left to be told
    }
    --request.unfinished;
  }
  if (request.unfinished == 0) leave(request);
}

void EngineCore::fail_items(const std::string& why) {
  for (const StepItem& item : plan_.items) {
    Sequence& s = *running_[static_cast<size_t>(item.sequence)];
    end(s, FinishReason::kError, internal_error(request_name(s) + "a step failed: " + why));
  }
}

void EngineCore::note_failure(const std::string& why) {
  if (!lost() && backend_.lost()) loss_ = why;
}

Status EngineCore::give_up() {
  const Status status = internal_error("the device is lost: " + loss_);
  end_all(FinishReason::kError, status);
  return status;
}

void EngineCore::drop_ended_items() {
  const auto ended = [&](const StepItem& item) { return running_[static_cast<size_t>(item.sequence)]->ended.has_value(); };
  for (const StepItem& item : plan_.items)
    if (ended(item)) {
      plan_.tokens -= item.tokens;
      plan_.decodes -= &item - plan_.items.data() < plan_.decodes;
    }
  plan_.items.erase(std::remove_if(plan_.items.begin(), plan_.items.end(), ended), plan_.items.end());
}

void EngineCore::sweep() {
  const auto ended = [](const SequencePtr& s) { return !s || s->ended.has_value(); };
  std::erase_if(running_, ended);
  std::erase_if(waiting_, ended);
}

void EngineCore::cancel_all() {
  take_inbox();
  end_all(FinishReason::kCancelled, {StatusCode::kCancelled, "the engine stops"});
}

void EngineCore::end_all(FinishReason reason, const Status& status) {
  for (auto* sequences : {&waiting_, &running_, &born_})
    for (const SequencePtr& s : *sequences) end(*s, reason, status);
  born_.clear();
  sweep();
  vision_.abandon();
  vision_.prune();
  publish_stats();
}

void EngineCore::publish_stats() {
  counters_.waiting = inbox_.waiting() + std::count_if(waiting_.begin(), waiting_.end(),
                                                       [](const SequencePtr& s) { return s->preempted; });
  counters_.running = static_cast<int64_t>(running_.size());
  counters_.kv_blocks_used = pool_.used();
  counters_.kv_blocks_cached = pool_.cached();
  counters_.tiles_encoded = vision_.tiles_encoded();
  counters_.vision_passes = vision_.passes();
  {
    std::lock_guard lock(stats_mutex_);
    published_ = counters_;
  }
  inbox_.ended(ended_requests_);  // after their numbers: who drained may read the stats
  ended_requests_ = 0;
}

EngineStats EngineCore::stats() const {
  EngineStats stats;
  {
    std::lock_guard lock(stats_mutex_);
    stats = published_;
  }
  stats.memory_planned = options_.memory_planned;
  for (size_t i = 0; i < kMemoryLineCount; ++i) {  // stands still since start-up, so any thread may read it
    const auto line = static_cast<MemoryLine>(i);
    const size_t used = backend_.allocator().used(line) + backend_.host_allocator().used(line);
    stats.memory_used.emplace_back(memory_line_name(line), static_cast<int64_t>(used));
  }
  return stats;
}

}  // namespace tessera
