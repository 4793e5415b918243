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

// Steps are planned for this share of the wait: what they take is known to about a twentieth, on a CPU to a tenth.
constexpr double kPlannedShare = 0.93, kCpuPlannedShare = 0.9;

bool is_cpu(const Backend& backend) { return backend.limits().kind == "cpu"; }

double decode_wait(const Backend& backend, std::optional<double> asked) {
  return is_cpu(backend) ? kCpuPlannedShare * asked.value_or(kCpuDecodeWait_s) : kPlannedShare * asked.value_or(kDecodeWait_s);
}

// A GPU's products are computed in pairs of tiles of 128 rows: a step of the 8B with 384 rows takes 10.3 ms (H200), with 256
// 6.9 and with 512 11.9.
int64_t row_multiple(const Backend& backend) { return is_cpu(backend) ? 16 : 256; }

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
  for (StepInFlight& step : steps_) step.items.reserve(sequences);
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
    return true;
  }
}

// Where the device works on while the host goes on, a step is handed over before the one ahead of it is over: its planning
// and launching, the commit of the one ahead and the calls of listeners cost the device nothing.
bool EngineCore::run_step() {
  const double time = now();
  StepInFlight& ahead = steps_[static_cast<size_t>(memory_.step.turn())];
  const bool flying = ahead.launched;
  take_inbox();
  expire(time);
  if (ahead.launched && !can_go_on()) finish(ahead);
  if (running_.empty()) last_end_s_ = -1;
  admit(time);
  want_pictures();
  make_room();
  vision_.prune();
  plan_step(views(), vision_.view(), limits_, costs_, plan_);
  const bool busy = !plan_.empty();
  TESSERA_CHECK(busy || ahead.launched || running_.empty(),
                "a step found nothing to do for " + std::to_string(running_.size()) + " sequences");
  if (busy) launch();
  if (ahead.launched) finish(ahead);
  StepInFlight& last = steps_[static_cast<size_t>(memory_.step.turn())];
  if (last.launched && (!backend_.asynchronous() || !last.wanted())) finish(last);
  publish_stats();
  return busy || flying;
}

// Whether the next step can be planned before the tokens of the one in flight are known. A grammar and edits of logits
// depend on them, answers that share a prompt begin with them; and they may end somebody whose blocks are needed.
bool EngineCore::can_go_on() {
  const bool waits = std::any_of(running_.begin(), running_.end(), [](const SequencePtr& s) {
    return s->constraint || s->edits.any() || s->answers > 1;
  });
  return !waits && decode_blocks(views(), memory_.shape.block_size) <= pool_.available();
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

// Hands the planned step to the stream.
void EngineCore::launch() {
  memory_.step.next_step();
  StepInFlight& step = steps_[static_cast<size_t>(memory_.step.turn())];
  step.begin(memory_.step.turn());
  reserve();
  backend_.mark(mark_of(kStepBegin, step.turn));
  if (plan_.vision_layers > 0) encode_pictures(step);
  if (!plan_.items.empty() && !lost()) compute_language(step);
  ++counters_.steps;
  sweep();  // of whom the device refused
}

void EngineCore::encode_pictures(StepInFlight& step) {
  if (plan_.new_pass_tiles > 0) vision_.take_tiles(plan_.new_pass_tiles);
  for (const SequencePtr& s : running_)
    if (std::any_of(s->pins.begin(), s->pins.end(), [&](const EmbeddingPin& pin) { return pin && vision_.encoding(pin.get()); }))
      step.seeing.push_back(s.get());
  const int64_t tiles = vision_.view().pass_tiles;
  try {
    vision_.run(plan_.vision_layers);
    backend_.mark(mark_of(kVisionEnd, step.turn));
    step.tiles = tiles;
    step.vision_layers = plan_.vision_layers;
  } catch (const std::exception& e) {
    note_failure(e.what());
    fail_pictures(step, e.what());
    drop_ended_items();
  }
}

void EngineCore::compute_language(StepInFlight& step) {
  try {
    language_.launch(running_, plan_);
  } catch (const std::exception& e) {
    note_failure(e.what());
    for (const StepItem& item : plan_.items) fail_item(*running_[static_cast<size_t>(item.sequence)], e.what());
    return;
  }
  hand_over(step);
}

// From here on the step counts as done; what it brings is known when it is over.
void EngineCore::hand_over(StepInFlight& step) {
  step.decodes = plan_.decodes;
  step.prompt_tokens = plan_.prompt_tokens();
  step.prompt_pairs = plan_.prompt_pairs;
  int32_t row = 0;
  for (const StepItem& item : plan_.items) {
    Sequence& s = *running_[static_cast<size_t>(item.sequence)];
    const bool decoding = s.computed >= s.prompt_length();
    s.computed += item.tokens;
    s.request->client->served += static_cast<double>(item.tokens);
    s.request->kind->served += static_cast<double>(item.tokens);
    step.items.push_back({.sequence = &s, .computed = s.computed, .answers = item.samples ? s.answers : 0, .decoding = decoding});
    if (!item.samples) continue;
    s.sampled_row = row;
    ++s.on_the_way;
    row += s.answers;
  }
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

void EngineCore::fail_item(Sequence& s, const std::string& why) {
  end(s, FinishReason::kError, internal_error(request_name(s) + "a step failed: " + why));
}

void EngineCore::fail_pictures(StepInFlight& step, const std::string& why) {
  for (Sequence* s : step.seeing)
    end(*s, FinishReason::kError, internal_error(request_name(*s) + "a picture could not be encoded: " + why));
  vision_.abandon();
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
  for (StepInFlight& step : steps_) step.forget_ended();
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
  drop_steps();
  vision_.abandon();
  vision_.prune();
  publish_stats();
}

// Nobody wants what is in flight any more; the device may still read pixels.
void EngineCore::drop_steps() {
  if (std::none_of(steps_.begin(), steps_.end(), [](const StepInFlight& step) { return step.launched; })) return;
  try {
    backend_.synchronize();
  } catch (const std::exception&) {  // it is lost and reads nothing
  }
  for (StepInFlight& step : steps_) {
    vision_.uploaded(step.turn);
    step.launched = false;
  }
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
