#include <algorithm>

#include "runtime/engine_core.h"

// The parts of EngineCore that book a step which is over: costs, tokens, endings by what was sampled.
namespace tessera {

void EngineCore::finish(StepInFlight& step) {
  step.launched = false;
  if (!step.items.empty() && !lost()) finish_language(step);
  if (step.tiles > 0 && !lost()) charge_vision(step);
  vision_.uploaded(step.turn);
  learn_overhead(step);
  sweep();
}

void EngineCore::finish_language(StepInFlight& step) {
  double seconds = 0;
  try {
    seconds = backend_.seconds_between(mark_of(step.tiles > 0 ? kVisionEnd : kStepBegin, step.turn), mark_of(kStepEnd, step.turn));
  } catch (const std::exception& e) {
    note_failure(e.what());
    for (const StepInFlight::Item& item : step.items)
      if (item.sequence) fail_item(*item.sequence, e.what());
    return;
  }
  charge(step, seconds);
  commit(step, language_.collect(step.turn));
}

void EngineCore::charge_vision(StepInFlight& step) {
  double seconds = 0;
  try {
    seconds = backend_.seconds_between(mark_of(kStepBegin, step.turn), mark_of(kVisionEnd, step.turn));
  } catch (const std::exception& e) {
    note_failure(e.what());
    return fail_pictures(step, e.what());
  }
  counters_.encode_s += seconds;
  for (Sequence* s : step.seeing) s->request->timings.encode_s += seconds;
  StepCosts::learn(costs_.tile_layer_s, seconds / static_cast<double>(step.tiles * step.vision_layers));
}

// What passes between the ends of two steps beside the device's work is the host's part.
void EngineCore::learn_overhead(const StepInFlight& step) {
  if (!backend_.captures() || step.items.empty() || lost()) {
    last_end_s_ = -1;
    return;
  }
  const double end = now();
  const double host = end - last_end_s_ - backend_.seconds_between(mark_of(kStepBegin, step.turn), mark_of(kStepEnd, step.turn));
  if (last_end_s_ >= 0) StepCosts::learn(costs_.overhead_s, std::clamp(host, 0.0, limits_.max_wait_s));
  last_end_s_ = end;
}

// Books a step's time: to its requests, to the counters, and to what the planner knows of costs.
void EngineCore::charge(const StepInFlight& step, double seconds) {
  costs_.learn_step(step.decodes, step.prompt_tokens, step.prompt_pairs, seconds);
  (step.prompt_tokens > 0 ? counters_.prefill_s : counters_.decode_s) += seconds;
  for (const StepInFlight::Item& item : step.items) {
    if (!item.sequence) continue;
    Timings& timings = item.sequence->request->timings;
    (item.decoding ? timings.decode_s : timings.prefill_s) += seconds;
  }
}

void EngineCore::commit(const StepInFlight& step, std::span<const SampledToken> samples) {
  targets_.clear();
  for (const StepInFlight::Item& item : step.items) {
    Sequence* s = item.sequence;
    if (s) publish_blocks(*s, item.computed);
    if (s && item.answers > 1) {
      fork(*s);
    } else {
      targets_.insert(targets_.end(), static_cast<size_t>(item.answers), s);
    }
  }
  for (size_t i = 0; i < samples.size(); ++i)
    if (targets_[i]) accept(*targets_[i], samples[i]);
  for (SequencePtr& s : born_) running_.push_back(std::move(s));
  born_.clear();
}

// The prompt is computed: the other answers share its full blocks and own their copy of the last one.
void EngineCore::fork(Sequence& s) {
  const int64_t full = s.computed / memory_.shape.block_size;
  targets_.push_back(&s);
  for (int answer = 1; answer < s.answers; ++answer) {
    auto child = std::make_unique<Sequence>();
    child->request = s.request;
    child->index = s.index + answer;
    child->on_the_way = s.on_the_way;
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
  --s.on_the_way;
  s.edits.accept(sample.id);
  ++counters_.generated_tokens;
  if (s.constraint && !s.constraint->accept(sample.id))
    return end(s, FinishReason::kError, internal_error("the chosen token " + std::to_string(sample.id) + " breaks the answer's grammar"));
  const bool goes_on = tell(s, sample);
  if (s.ended) return;
  const bool stop = std::find(request.stop_ids.begin(), request.stop_ids.end(), sample.id) != request.stop_ids.end();
  if (!goes_on || stop || (s.constraint && s.constraint->finished())) return end(s, FinishReason::kStop, {});
  if (is_full(s, s.known_length())) end(s, FinishReason::kLength, {});
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

}  // namespace tessera
