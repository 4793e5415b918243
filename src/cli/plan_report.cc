#include "cli/plan_report.h"

#include <algorithm>
#include <cstdlib>
#include <sstream>

namespace tessera::cli {
namespace {

const char* title(MemoryLine line) {
  switch (line) {
    case MemoryLine::kLanguageWeights: return "language weights";
    case MemoryLine::kVisionWeights: return "vision weights";
    case MemoryLine::kKvCache: return "KV cache";
    case MemoryLine::kVisionWorkspace: return "vision workspace";
    case MemoryLine::kActivations: return "activations";
    case MemoryLine::kLogits: return "logits, sampling";
    case MemoryLine::kEmbeddingCache: return "embedding cache";
    case MemoryLine::kStaging: return "staging";
    case MemoryLine::kCommunication: return "communication";
    case MemoryLine::kGraphs: return "graphs";
    case MemoryLine::kDriver: return "driver, program";
  }
  return "";
}

std::string pad_left(const std::string& text, size_t width) {
  return std::string(width > text.size() ? width - text.size() : 0, ' ') + text;
}
std::string pad_right(std::string text, size_t width) {
  text.resize(std::max(width, text.size()), ' ');
  return text;
}

std::string tail(const std::string& name, const MemoryPlan& plan) {
  const EngineShape& s = plan.shape;
  if (name == title(MemoryLine::kKvCache)) return std::to_string(plan.kv_cache_tokens) + " tokens";
  if (name == title(MemoryLine::kVisionWorkspace)) return std::to_string(s.vision_batch) + " tiles a pass";
  if (name == title(MemoryLine::kActivations)) return std::to_string(s.step_tokens) + " tokens a step";
  if (name == title(MemoryLine::kLogits)) return std::to_string(s.max_sequences) + " rows";
  if (name == title(MemoryLine::kEmbeddingCache)) return std::to_string(s.embedding_tiles) + " tiles";
  return "";
}

void row(std::ostringstream& out, const MemoryPlan& plan, const std::string& name, const std::vector<int64_t>& bytes) {
  out << pad_right(name, 18);
  for (const int64_t b : bytes) {
    const std::string size = format_bytes(std::abs(b));
    out << pad_left(b < 0 ? '-' + size : size, 14);
  }
  const std::string note = tail(name, plan);
  if (!note.empty()) out << "  " << note;
  out << '\n';
}

template <class F>
std::vector<int64_t> each(const MemoryPlan& plan, F&& f) {
  std::vector<int64_t> values;
  for (const DevicePlan& device : plan.devices) values.push_back(f(device));
  return values;
}

// Why the order matters: a cache that is sized before vision leaves too little for it.
void explain_order(std::ostringstream& out, const MemoryPlan& plan, double ratio) {
  const DevicePlan& first = plan.devices.front();
  const int64_t vision = first.line(MemoryLine::kVisionWeights) + first.line(MemoryLine::kVisionWorkspace) +
                         first.line(MemoryLine::kEmbeddingCache);
  const int64_t cache = first.line(MemoryLine::kKvCache);
  const int64_t left = first.free_bytes() + cache;
  out << "\nVision takes " << format_bytes(vision) << " of rank 0 (weights, a pass of " << plan.shape.vision_batch
      << " tiles, kept embeddings), set aside before the KV cache; the cache has " << format_bytes(cache) << " of the "
      << format_bytes(std::max<int64_t>(left, 0)) << " left after all else.\n";
  const int64_t needed = vision + first.line(MemoryLine::kActivations) + first.line(MemoryLine::kLogits);
  const int64_t after_weights = first.capacity_bytes - first.line(MemoryLine::kLanguageWeights) - first.line(MemoryLine::kDriver);
  const auto rest = static_cast<int64_t>(static_cast<double>(after_weights) * (1 - ratio));
  if (after_weights > 0 && needed > rest)
    out << "A cache of " << ratio << " of what the language weights leave (" << format_bytes(after_weights)
        << ") would leave " << format_bytes(rest) << " where vision, activations and logits need "
        << format_bytes(needed) << ": out of memory at the first picture.\n";
}

}  // namespace

Json plan_json(const MemoryPlan& plan) {
  Json devices = Json::array();
  for (const DevicePlan& device : plan.devices) {
    Json lines = Json::array();
    for (size_t i = 0; i < kMemoryLineCount; ++i) {
      Json line = Json::object();
      line.set("name", memory_line_name(static_cast<MemoryLine>(i)));
      line.set("bytes", device.lines[i]);
      lines.push_back(std::move(line));
    }
    Json item = Json::object();
    item.set("name", device.name);
    item.set("capacity_bytes", device.capacity_bytes);
    item.set("total_bytes", device.total_bytes());
    item.set("free_bytes", device.free_bytes());
    item.set("lines", std::move(lines));
    devices.push_back(std::move(item));
  }
  Json suggestions = Json::array();
  for (const PlanSuggestion& suggestion : plan.suggestions) suggestions.push_back(suggestion.text);
  Json out = Json::object();
  out.set("fits", plan.fits);
  out.set("devices", std::move(devices));
  out.set("kv_cache_tokens", plan.kv_cache_tokens);
  out.set("max_prompt_tokens", plan.max_prompt_tokens);
  out.set("max_tiles_per_request", plan.max_tiles_per_request);
  out.set("suggestions", std::move(suggestions));
  return out;
}

std::string plan_table(const MemoryPlan& plan, const std::string& model, double cache_ratio) {
  std::ostringstream out;
  out << model << " in " << dtype_name(plan.compute) << ", sessions of " << plan.shape.session_len << " tokens, "
      << plan.shape.max_sequences << " at once\n\n"
      << pad_right("", 18);
  for (size_t r = 0; r < plan.devices.size(); ++r) out << pad_left("rank " + std::to_string(r), 14);
  out << '\n' << pad_right("", 18);
  for (const DevicePlan& device : plan.devices)
    out << pad_left(device.name.size() > 13 ? device.name.substr(device.name.size() - 13) : device.name, 14);
  out << '\n';
  for (size_t i = 0; i < kMemoryLineCount; ++i)
    row(out, plan, title(static_cast<MemoryLine>(i)), each(plan, [i](const DevicePlan& d) { return d.lines[i]; }));
  row(out, plan, "total", each(plan, [](const DevicePlan& d) { return d.total_bytes(); }));
  row(out, plan, "capacity", each(plan, [](const DevicePlan& d) { return d.capacity_bytes; }));
  row(out, plan, "free", each(plan, [](const DevicePlan& d) { return d.free_bytes(); }));
  explain_order(out, plan, cache_ratio);
  for (const std::string& remark : plan.remarks) out << "Note: " << remark << ".\n";
  out << "\nFor requests: " << plan.kv_cache_tokens << " tokens of KV; prompts of up to " << plan.max_prompt_tokens
      << " tokens; pictures of up to " << plan.max_tiles_per_picture << " tiles, " << plan.max_tiles_per_request
      << " tiles a request; " << plan.requests_at_once << (plan.requests_at_once == 1 ? " request of " : " requests of ") << plan.shape.session_len << " tokens at once.\n";
  if (plan.fits) {
    out << "It fits.\n";
    return out.str();
  }
  out << "It does not fit: " << plan.reason << ".\n";
  for (const PlanSuggestion& suggestion : plan.suggestions) out << "  fits with " << suggestion.text << '\n';
  return out.str();
}

}  // namespace tessera::cli
