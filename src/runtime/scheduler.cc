#include "runtime/scheduler.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace tessera {
namespace {

// Smallest slice of a prompt that a step takes: below this a step's fixed cost (reading the weights) dominates.
constexpr int64_t kMinChunk = 16;
// Slice of a prompt beside decodes while the cost of a token is unknown.
constexpr int64_t kFirstChunk = 64;
// Of what a step has beside decodes, vision's where prompts want all they can get: enough that pictures come in as fast as
// their prompts are computed.
constexpr double kVisionShare = 1.0 / 3;

bool decodes(const SequenceView& s) { return s.length - s.computed == 1 && s.ready == s.length; }

// Order in which prompts are served.
bool goes_first(const SequenceView& a, const SequenceView& b) {
  if (a.priority != b.priority) return a.priority > b.priority;
  if (a.served != b.served) return a.served < b.served;
  return a.age < b.age;
}

// Seconds that prompts and pictures may take of a step beside decodes. A quarter of the wait is theirs even where the
// decodes take all of it.
double spare_seconds(bool prompts, const StepLimits& limits, const StepCosts& costs) {
  const double own = prompts && costs.mixed_step_s >= 0 ? costs.mixed_step_s : std::max(costs.decode_step_s, 0.0);
  return std::max(limits.max_wait_s - own - costs.overhead_s, limits.max_wait_s / 4);
}

int64_t at_most(double count, int64_t limit) {
  return count >= static_cast<double>(limit) ? limit : static_cast<int64_t>(count);
}

// The most prompt tokens, at most `tokens`, with which a step has whole tiles of rows, or half of one; where not even that
// fits, whole pieces, at least the smallest.
int64_t whole_rows(int64_t decodes, int64_t tokens, const StepLimits& limits) {
  for (const int64_t rows : {limits.row_multiple, limits.row_multiple / 2})
    if (const int64_t whole = (decodes + tokens) / rows * rows - decodes; whole >= kMinChunk) return whole;
  return std::max(tokens / kMinChunk * kMinChunk, kMinChunk);
}

void add_prompts(std::span<const SequenceView> running, int64_t budget, StepPlan& plan) {
  const size_t first = plan.items.size();
  for (size_t i = 0; i < running.size(); ++i)
    if (!decodes(running[i]) && running[i].ready > running[i].computed)
      plan.items.push_back({.sequence = static_cast<int32_t>(i), .tokens = 0, .samples = false});
  const auto begin = plan.items.begin() + static_cast<std::ptrdiff_t>(first);
  std::sort(begin, plan.items.end(), [&](const StepItem& a, const StepItem& b) {
    return goes_first(running[static_cast<size_t>(a.sequence)], running[static_cast<size_t>(b.sequence)]);
  });
  const auto wants = [&](const StepItem& item) {
    const SequenceView& s = running[static_cast<size_t>(item.sequence)];
    return s.ready - s.computed;
  };
  // Short prompts first, in up to half of the budget: a line of text does not wait behind somebody's album.
  int64_t left = budget;
  for (auto item = begin; item != plan.items.end(); ++item)
    if (wants(*item) <= budget / 4 && budget - left + wants(*item) <= budget / 2) {
      item->tokens = static_cast<int32_t>(wants(*item));
      left -= item->tokens;
    }
  for (auto item = begin; item != plan.items.end() && left > 0; ++item)
    if (item->tokens == 0) {
      item->tokens = static_cast<int32_t>(std::min(left, wants(*item)));
      left -= item->tokens;
    }
  plan.items.erase(std::remove_if(begin, plan.items.end(), [](const StepItem& i) { return i.tokens == 0; }),
                   plan.items.end());
  for (size_t i = first; i < plan.items.size(); ++i) {
    StepItem& item = plan.items[i];
    const SequenceView& s = running[static_cast<size_t>(item.sequence)];
    item.samples = s.computed + item.tokens == s.length;
    plan.tokens += item.tokens;
    plan.prompt_pairs += static_cast<double>(item.tokens) * (static_cast<double>(s.computed) + 0.5 * item.tokens);
  }
}

void drop_prompts(StepPlan& plan) {
  plan.items.resize(static_cast<size_t>(plan.decodes));
  plan.tokens = plan.decodes;
  plan.prompt_pairs = 0;
}

// Prompts beside decodes: as many tokens as take about `seconds`.
void add_fitting_prompts(std::span<const SequenceView> running, double seconds, const StepLimits& limits, const StepCosts& costs,
                         StepPlan& plan) {
  const int64_t room = limits.step_tokens - plan.decodes;
  if (costs.prefill_token_s < 0) return add_prompts(running, std::min(room, kFirstChunk), plan);
  int64_t budget = at_most(seconds / std::max(costs.prefill_token_s, 1e-12), room);
  while (true) {
    budget = whole_rows(plan.decodes, budget, limits);
    add_prompts(running, std::min(budget, room), plan);
    if (budget <= kMinChunk || costs.prompt_seconds(plan.prompt_tokens(), plan.prompt_pairs) <= seconds) return;
    drop_prompts(plan);
    --budget;
  }
}

// Tiles of a new pass: one layer of it has to fit vision's share beside decodes and prompts, whether there are any yet or they
// come while it is under way.
int64_t pass_tiles(const VisionView& vision, bool decodes, const StepLimits& limits, const StepCosts& costs) {
  const int64_t tiles = std::min(vision.waiting_tiles, vision.max_tiles);
  if (costs.tile_layer_s < 0) return decodes ? std::min<int64_t>(tiles, 1) : tiles;
  const double seconds = spare_seconds(/*prompts=*/true, limits, costs) * kVisionShare;
  return std::min(tiles, std::max<int64_t>(at_most(seconds / std::max(costs.tile_layer_s, 1e-12), tiles), 1));
}

// The pass that this step works on: tiles and layers to run; layers 0: none.
struct Pass {
  int64_t tiles = 0, layers = 0;
};

Pass pass_of(const VisionView& vision, StepPlan& plan, const StepLimits& limits, const StepCosts& costs) {
  if (vision.pass_tiles > 0) return {vision.pass_tiles, vision.layers_left};
  plan.new_pass_tiles = pass_tiles(vision, plan.decodes > 0, limits, costs);
  return {plan.new_pass_tiles, plan.new_pass_tiles > 0 ? vision.layers : 0};
}

// Seconds that are kept for vision beside prompts.
double kept_for_vision(const Pass& pass, double spare, const StepCosts& costs) {
  if (pass.layers == 0) return 0;
  const double share = spare * kVisionShare;
  return costs.tile_layer_s < 0 ? share : std::min(share, costs.tile_layer_s * static_cast<double>(pass.tiles * pass.layers));
}

int64_t layers_in(const Pass& pass, double seconds, const StepCosts& costs) {
  if (pass.layers == 0) return 0;
  const double layer_s = costs.tile_layer_s * static_cast<double>(pass.tiles);
  return costs.tile_layer_s < 0 ? 1 : std::max<int64_t>(at_most(seconds / std::max(layer_s, 1e-12), pass.layers), 1);
}

}  // namespace

void StepCosts::learn_step(int64_t decodes, int64_t prompt_tokens, double pairs, double seconds) {
  constexpr int64_t kTelling = 512;  // a shorter prompt's step is mostly the step's own cost
  const double products = std::max(seconds - prefill_pair_s * pairs, 0.0);
  if (prompt_tokens == 0) {
    learn(decode_step_s, seconds);
  } else if (decodes == 0) {
    const double weight = static_cast<double>(std::min(prompt_tokens, kTelling)) / static_cast<double>(8 * kTelling);
    learn(prefill_token_s, products / static_cast<double>(prompt_tokens), weight);
  } else if (prefill_token_s < 0) {
    learn(prefill_token_s, std::max(products - std::max(decode_step_s, 0.0), 0.0) / static_cast<double>(prompt_tokens));
  } else {
    learn(mixed_step_s, std::max(seconds - prompt_seconds(prompt_tokens, pairs), 0.0));
  }
}

bool tower_busy(int64_t tiles, int64_t vision_batch) { return tiles > 0 && tiles >= 2 * vision_batch; }

int64_t pick_waiting(std::span<const WaitingView> waiting, bool tower_busy) {
  const auto held_back = [&](const WaitingView& request) { return tower_busy && request.needs_tower; };
  const auto better = [&](const WaitingView& a, const WaitingView& b) {
    if (held_back(a) != held_back(b)) return held_back(b);
    if (a.priority != b.priority) return a.priority > b.priority;
    if (a.preempted != b.preempted) return a.preempted;
    if (!a.preempted && a.served != b.served) return a.served < b.served;
    if (!a.preempted && a.kind_served != b.kind_served) return a.kind_served < b.kind_served;
    if (!a.preempted && a.pictures != b.pictures) return b.pictures;
    return a.age < b.age;
  };
  const auto best = std::min_element(waiting.begin(), waiting.end(), better);
  return best == waiting.end() || held_back(*best) ? -1 : best - waiting.begin();
}

int64_t admission_blocks(const WaitingView& request, int64_t block_size) {
  const int64_t blocks = request.length / block_size + 1;  // the token after the last known one included
  return blocks + (request.answers - 1);
}

bool can_admit(const WaitingView& request, int64_t found, const AdmissionState& state) {
  if (state.running_sequences == 0) return true;  // submit() has checked that it fits alone
  if (state.running_sequences + request.answers > state.max_sequences) return false;
  return admission_blocks(request, state.block_size) - found + state.running_sequences <= state.available_blocks;
}

int64_t decode_blocks(std::span<const SequenceView> running, int64_t block_size) {
  int64_t blocks = 0;
  for (const SequenceView& s : running) blocks += decodes(s) && s.computed >= s.blocks * block_size;
  return blocks;
}

int64_t pick_victim(std::span<const SequenceView> running) {
  const auto worse = [](const SequenceView& a, const SequenceView& b) {
    if (a.priority != b.priority) return a.priority < b.priority;
    return a.age > b.age;
  };
  const auto victim = std::min_element(running.begin(), running.end(), worse);
  return victim == running.end() ? -1 : victim - running.begin();
}

void plan_step(std::span<const SequenceView> running, const VisionView& vision, const StepLimits& limits,
               const StepCosts& costs, StepPlan& plan) {
  plan.items.clear();
  plan.decodes = plan.tokens = plan.new_pass_tiles = plan.vision_layers = 0;
  plan.prompt_pairs = 0;
  for (size_t i = 0; i < running.size(); ++i)
    if (decodes(running[i])) plan.items.push_back({.sequence = static_cast<int32_t>(i), .tokens = 1, .samples = true});
  plan.decodes = plan.tokens = static_cast<int64_t>(plan.items.size());
  TESSERA_CHECK(plan.decodes <= limits.step_tokens, "plan_step: more decodes than step tokens");
  const Pass pass = pass_of(vision, plan, limits, costs);
  if (plan.decodes == 0) {
    add_prompts(running, limits.step_tokens, plan);
    plan.vision_layers = layers_in(pass, limits.max_wait_s, costs);
    return;
  }
  const double spare = spare_seconds(/*prompts=*/true, limits, costs);
  add_fitting_prompts(running, spare - kept_for_vision(pass, spare, costs), limits, costs, plan);
  const bool prompts = plan.prompt_tokens() > 0;
  const double taken = !prompts ? 0 : costs.prefill_token_s < 0 ? spare * (1 - kVisionShare) : costs.prompt_seconds(plan.prompt_tokens(), plan.prompt_pairs);
  plan.vision_layers = layers_in(pass, spare_seconds(prompts, limits, costs) - taken, costs);
}

}  // namespace tessera
