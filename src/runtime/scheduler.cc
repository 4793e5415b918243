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

// Tokens of prompts in this step.
int64_t prefill_budget(const StepPlan& plan, bool vision, const StepLimits& limits, const StepCosts& costs) {
  const int64_t room = limits.step_tokens - plan.tokens;
  if (plan.decodes == 0) return room;
  if (costs.prefill_token_s < 0) return std::min(room, kFirstChunk);
  const double seconds = spare_seconds(/*prompts=*/true, limits, costs) * (vision ? 0.5 : 1.0);
  const int64_t tokens = at_most(seconds / std::max(costs.prefill_token_s, 1e-12), room);
  const int64_t whole = (plan.tokens + tokens) / limits.row_multiple * limits.row_multiple - plan.tokens;
  return std::min(room, whole >= kMinChunk ? whole : std::max(tokens / kMinChunk * kMinChunk, kMinChunk));
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
  }
}

// Tiles of a new pass: one layer of it has to fit vision's slice beside decodes and prompts, whether there are any yet or they
// come while it is under way.
int64_t pass_tiles(const VisionView& vision, bool decodes, const StepLimits& limits, const StepCosts& costs) {
  const int64_t tiles = std::min(vision.waiting_tiles, vision.max_tiles);
  if (costs.tile_layer_s < 0) return decodes ? std::min<int64_t>(tiles, 1) : tiles;
  const double seconds = spare_seconds(/*prompts=*/true, limits, costs) / 2;
  return std::min(tiles, std::max<int64_t>(at_most(seconds / std::max(costs.tile_layer_s, 1e-12), tiles), 1));
}

void add_vision(const VisionView& vision, bool prompts, const StepLimits& limits, const StepCosts& costs,
                StepPlan& plan) {
  int64_t tiles = vision.pass_tiles;
  int64_t layers = vision.layers_left;
  if (tiles == 0) {
    tiles = pass_tiles(vision, plan.decodes > 0, limits, costs);
    layers = vision.layers;
    plan.new_pass_tiles = tiles;
  }
  if (tiles == 0) return;
  const double seconds = plan.decodes == 0 ? limits.max_wait_s : spare_seconds(prompts, limits, costs) * (prompts ? 0.5 : 1.0);
  const double layer_s = costs.tile_layer_s * static_cast<double>(tiles);
  plan.vision_layers =
      costs.tile_layer_s < 0 ? 1 : std::max<int64_t>(at_most(seconds / std::max(layer_s, 1e-12), layers), 1);
}

}  // namespace

void StepCosts::learn_step(int64_t decodes, int64_t prompt_tokens, double seconds) {
  constexpr int64_t kTelling = 512;  // a shorter prompt's step is mostly the step's own cost
  if (prompt_tokens == 0) {
    learn(decode_step_s, seconds);
  } else if (decodes == 0) {
    const double weight = static_cast<double>(std::min(prompt_tokens, kTelling)) / static_cast<double>(8 * kTelling);
    learn(prefill_token_s, seconds / static_cast<double>(prompt_tokens), weight);
  } else if (prefill_token_s < 0) {
    learn(prefill_token_s, std::max(seconds - std::max(decode_step_s, 0.0), 0.0) / static_cast<double>(prompt_tokens));
  } else {
    learn(mixed_step_s, std::max(seconds - prefill_token_s * static_cast<double>(prompt_tokens), 0.0));
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
  for (size_t i = 0; i < running.size(); ++i)
    if (decodes(running[i])) plan.items.push_back({.sequence = static_cast<int32_t>(i), .tokens = 1, .samples = true});
  plan.decodes = plan.tokens = static_cast<int64_t>(plan.items.size());
  TESSERA_CHECK(plan.decodes <= limits.step_tokens, "plan_step: more decodes than step tokens");
  const bool sees = vision.pass_tiles > 0 || vision.waiting_tiles > 0;
  add_prompts(running, prefill_budget(plan, sees, limits, costs), plan);
  const bool prompts = plan.tokens > plan.decodes;
  if (sees) add_vision(vision, prompts, limits, costs, plan);
}

}  // namespace tessera
