#include "runtime/plan_search.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <string>

#include "models/checkpoint.h"

namespace tessera {
namespace {

// A setting that memory depends on, as a number that can be lowered.
struct Knob {
  const char* option;
  int64_t value;    ///< as planned
  int64_t minimum;  ///< the least that still serves
  double weight;    ///< what halving it costs the user, beside the others
  std::function<void(EngineOptions&, int64_t)> set;
  std::function<std::string(int64_t)> show;
};

std::string number(int64_t value) { return std::to_string(value); }

std::vector<Knob> knobs(const MemoryPlan& plan, const ModelConfig& config, const EngineOptions& options, bool cpu) {
  const EngineShape& s = plan.shape;
  const int64_t picture = std::min(largest_picture_tiles(config, options), s.embedding_tiles);
  const int64_t tile_bytes = config.tokens_per_tile() * config.language.hidden *
                             static_cast<int64_t>(size_of(plan.compute));
  const int64_t pixel_bytes = 3 * config.vision.image_size * config.vision.image_size;
  const auto whole = [](int64_t bytes) { return (bytes + (1 << 20) - 1) >> 20; };  // MiB
  const auto mebibytes = [=](int64_t tiles) { return number(whole(tiles * tile_bytes)) + "MiB"; };
  std::vector<Knob> all = {
      {"--vision-batch", s.vision_batch, 1, 0.5, [](EngineOptions& o, int64_t v) { o.vision_batch = v; }, number},
      {"--embedding-cache", s.embedding_tiles, picture, 0.6,
       [=](EngineOptions& o, int64_t v) { o.embedding_cache_bytes = whole(v * tile_bytes) << 20; }, mebibytes},
      {"--max-prefill-tokens", s.step_tokens, std::max<int64_t>(256, s.max_sequences), 0.7,
       [](EngineOptions& o, int64_t v) { o.max_prefill_tokens = v; }, number},
      {"--max-batch-size", s.max_sequences, 1, 0.9, [](EngineOptions& o, int64_t v) { o.max_batch_size = v; }, number},
      {"--session-len", s.session_len, std::min<int64_t>(s.session_len, 2048), 1.0,
       [](EngineOptions& o, int64_t v) { o.session_len = v; }, number},
  };
  if (cpu)  // the host's memory is the device's
    all.insert(all.begin() + 1, {"--tile-cache", s.host_tiles, std::min(s.host_tiles, picture), 0.55,
                                 [=](EngineOptions& o, int64_t v) { o.tile_cache_bytes = whole(v * pixel_bytes) << 20; },
                                 [=](int64_t v) { return number(whole(v * pixel_bytes)) + "MiB"; }});
  return all;
}

class Search {
 public:
  Search(const Checkpoint& checkpoint, std::span<const PlanDevice> devices, const PlanLayout& layout)
      : checkpoint_(checkpoint), devices_(devices), layout_(layout) {}

  bool fits(const EngineOptions& options) const {
    auto plan = plan_once(checkpoint_, devices_, options, layout_);
    return plan.ok() && plan->fits;
  }

  // About the largest value of a knob with which the plan fits: halved until it does, then five times bisected; 0 when
  // none does.
  int64_t lower(const Knob& knob, const EngineOptions& options) const {
    const auto fits_with = [&](int64_t value) {
      EngineOptions changed = options;
      knob.set(changed, value);
      return fits(changed);
    };
    int64_t too_much = knob.value;
    int64_t good = 0;
    while (good == 0) {
      const int64_t tried = std::max(too_much / 2, knob.minimum);
      if (tried >= too_much) return 0;
      (fits_with(tried) ? good : too_much) = tried;
    }
    for (int i = 0; i < 5; ++i) {
      int64_t middle = (good + too_much) / 2;
      if (middle > 256) middle = middle / 64 * 64;  // numbers that a person would choose
      if (middle <= good) break;
      (fits_with(middle) ? good : too_much) = middle;
    }
    return good;
  }

 private:
  const Checkpoint& checkpoint_;
  std::span<const PlanDevice> devices_;
  PlanLayout layout_;
};

double cost_of(const Knob& knob, int64_t value) {
  return knob.weight * std::log2(static_cast<double>(knob.value) / static_cast<double>(value));
}

std::string text_of(const Knob& knob, int64_t value) { return std::string(knob.option) + " " + knob.show(value); }

// All knobs but the last at their least, then the last as high as it goes.
void add_combination(const Search& search, const std::vector<Knob>& all, const EngineOptions& options,
                     std::vector<PlanSuggestion>& found) {
  EngineOptions changed = options;
  PlanSuggestion suggestion;
  for (const Knob& knob : all) {
    const int64_t value = search.lower(knob, changed);
    const int64_t use = value > 0 ? value : knob.minimum;
    if (use >= knob.value) continue;
    knob.set(changed, use);
    if (!suggestion.text.empty()) suggestion.text += ' ';
    suggestion.text += text_of(knob, use);
    suggestion.cost += cost_of(knob, use);
    if (value > 0) {
      found.push_back(suggestion);
      return;
    }
  }
}

void add_ratio(const Search& search, const EngineOptions& options, std::vector<PlanSuggestion>& found) {
  for (const double ratio : {0.9, 0.95, 1.0}) {
    if (ratio <= options.cache_max_entry_count || options.kv_cache_tokens) continue;
    EngineOptions changed = options;
    changed.cache_max_entry_count = ratio;
    if (!search.fits(changed)) continue;
    found.push_back({"--cache-max-entry-count " + std::to_string(ratio).substr(0, 4), 0.3 + (ratio - options.cache_max_entry_count)});
    return;
  }
}

// The same devices, the model laid out over them otherwise.
void add_layouts(const Checkpoint& checkpoint, std::span<const PlanDevice> devices, const EngineOptions& options,
                 const PlanLayout& layout, std::vector<PlanSuggestion>& found) {
  if (devices.size() < 2) return;
  if (!layout.layer_split && options.tp > 1 && layout.vision != VisionPlacement::kSplit) {
    PlanLayout split = layout;
    split.vision = VisionPlacement::kSplit;
    if (Search(checkpoint, devices, split).fits(options)) found.push_back({"--vision-placement split", 0.4});
  }
  if (!layout.layer_split) {
    PlanLayout split = layout;
    split.layer_split = true;
    EngineOptions changed = options;
    changed.tp = 1;
    if (Search(checkpoint, devices, split).fits(changed))
      found.push_back({options.tp > 1 ? "--layer-split in place of --tp" : "--layer-split", 1.4});
  }
}

// The same devices, the small ones with more memory: what a session needs beside all else, in whole GiB.
void add_memory(const Checkpoint& checkpoint, std::span<const PlanDevice> devices, const EngineOptions& options,
                const PlanLayout& layout, const MemoryPlan& plan, std::vector<PlanSuggestion>& found) {
  const double ratio = std::max(options.cache_max_entry_count, 0.01);
  int64_t needed = 0;
  for (const DevicePlan& device : plan.devices) {
    const int64_t session = plan.shape.max_blocks_per_sequence() * device.kv_block_bytes;
    const int64_t others = device.total_bytes() - device.line(MemoryLine::kKvCache);
    const double cache = options.kv_cache_tokens ? static_cast<double>(device.line(MemoryLine::kKvCache)) : static_cast<double>(session) / ratio;
    needed = std::max(needed, others + static_cast<int64_t>(cache));
  }
  EngineOptions changed = options;
  changed.gpu_memory_limit.reset();
  // More room moves layers to other devices, so that the first estimate may be too small for them.
  const int64_t first = (needed >> 30) + 1;
  for (int64_t gibibytes = first; gibibytes <= 2 * first; gibibytes += std::max<int64_t>(1, first / 16)) {
    std::vector<PlanDevice> larger(devices.begin(), devices.end());
    bool mixed = false;
    for (PlanDevice& device : larger) {
      mixed = mixed || device.memory_bytes() > gibibytes << 30;
      device.limits.memory_bytes = device.limits.memory_free_bytes = std::max(device.memory_bytes(), gibibytes << 30);
    }
    if (!Search(checkpoint, larger, layout).fits(changed)) continue;
    found.push_back({std::string("devices of ") + (mixed ? "at least " : "") + std::to_string(gibibytes) + "GiB", 6});
    return;
  }
}

// More of the devices that there are, or more of the same kind.
void add_devices(const Checkpoint& checkpoint, std::span<const PlanDevice> devices, const EngineOptions& options,
                 const PlanLayout& layout, std::vector<PlanSuggestion>& found) {
  if (devices.front().limits.kind == "cpu") return;
  const auto there = static_cast<int>(devices.size());
  const bool alike = std::all_of(devices.begin(), devices.end(), [&](const PlanDevice& device) {
    return device.memory_bytes() == devices.front().memory_bytes();
  });
  const auto fits_on = [&](int count, int tp) {
    if (count > there && !alike) return false;  // "such devices" would mean nothing
    std::vector<PlanDevice> more(devices.begin(), devices.end());
    while (static_cast<int>(more.size()) < count) more.push_back(devices.back());
    EngineOptions changed = options;
    changed.tp = tp;
    return Search(checkpoint, more, layout).fits(changed);
  };
  if (layout.layer_split) {
    for (int count = there + 1; count <= std::max(16, 2 * there); ++count) {
      if (!fits_on(count, options.tp)) continue;
      found.push_back({std::to_string(count) + " such devices", 4.0 + std::log2(static_cast<double>(count) / there)});
      return;
    }
    return;
  }
  for (int tp = options.tp * 2; tp <= 16; tp *= 2) {
    if (!fits_on(std::max(tp, there), tp)) continue;
    found.push_back({"--tp " + std::to_string(tp) + (tp <= there ? "" : " on " + std::to_string(tp) + " such devices"),
                     (tp <= there ? 1.5 : 4.0) + std::log2(tp / options.tp)});
    return;
  }
}

}  // namespace

std::vector<PlanSuggestion> find_suggestions(const Checkpoint& checkpoint, std::span<const PlanDevice> devices,
                                             const EngineOptions& options, const PlanLayout& layout,
                                             const MemoryPlan& plan) {
  const Search search(checkpoint, devices, layout);
  const std::vector<Knob> all = knobs(plan, checkpoint.config(), options, devices.front().limits.kind == "cpu");
  std::vector<PlanSuggestion> found;
  add_ratio(search, options, found);
  if (options.kv_cache_tokens) {
    EngineOptions changed = options;
    changed.kv_cache_tokens.reset();
    if (search.fits(changed)) found.push_back({"no --kv-cache-tokens", 0.2});
  }
  for (const Knob& knob : all)
    if (const int64_t value = search.lower(knob, options); value > 0)
      found.push_back({text_of(knob, value), cost_of(knob, value)});
  if (found.empty()) add_combination(search, all, options, found);
  add_layouts(checkpoint, devices, options, layout, found);
  add_devices(checkpoint, devices, options, layout, found);
  add_memory(checkpoint, devices, options, layout, plan, found);
  std::stable_sort(found.begin(), found.end(), [](const PlanSuggestion& a, const PlanSuggestion& b) { return a.cost < b.cost; });
  return found;
}

}  // namespace tessera
