#include "runtime/memory_plan.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "models/checkpoint.h"
#include "runtime/engine_memory.h"
#include "runtime/plan_layout.h"
#include "runtime/plan_search.h"
#include "runtime/planning_backend.h"

namespace tessera {
namespace {

// The longest session that is planned for unless a longer one is asked for.
constexpr int64_t kDefaultSession = 32768;
// Prompt tokens of a step. A GPU needs about this many rows to run at its speed; on a CPU a few hundred do, and the
// activations stay small.
constexpr int64_t kGpuStepTokens = 4096;
constexpr int64_t kCpuStepTokens = 512;
// Tiles of a pass: a GPU takes a whole picture; a CPU is busy with a few.
constexpr int64_t kCpuVisionBatch = 4;
// Pictures of the largest usual size whose embeddings are kept.
constexpr int64_t kCachedPictures = 4;
// Answers that may hold a picture's tiles in host memory at once; beyond that they wait for each other.
constexpr int64_t kHostPictures = 64;
// Encoded and decoded pictures on the way to tiles. On a CPU they share the device's memory: one of 10 megapixels at a time.
constexpr int64_t kCpuPreparationBytes = int64_t{32} << 20;
constexpr int64_t kHostPreparationBytes = int64_t{1} << 30;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Result<DType> compute_dtype(const std::string& name, DType stored) {
  if (name == "auto") return stored;
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32})
    if (name == dtype_name(dtype)) return dtype;
  return invalid_input("--dtype is \"" + name + "\"; expected auto, bf16, f16 or f32");
}

int64_t default_session(const ModelConfig& config) {
  const LanguageConfig& language = config.language;
  double tokens = static_cast<double>(language.max_position);
  if (language.rope.kind == RopeKind::kDynamicNtk) tokens *= std::max(1.0, language.rope.factor);
  return std::clamp(static_cast<int64_t>(tokens), int64_t{16}, kDefaultSession);
}

EngineShape resolve_shape(const ModelConfig& config, const EngineOptions& options, const PlanDevice& device,
                          DType activation) {
  const bool cpu = device.limits.kind == "cpu";
  EngineShape shape;
  shape.session_len = options.session_len.value_or(default_session(config));
  shape.max_sequences = options.max_batch_size;
  const int64_t step = options.max_prefill_tokens.value_or(cpu ? kCpuStepTokens : kGpuStepTokens);
  shape.step_tokens = std::max(std::min(step, shape.session_len), shape.max_sequences);
  const int64_t picture = largest_picture_tiles(config, options);
  shape.vision_batch = options.vision_batch.value_or(cpu ? std::min(picture, kCpuVisionBatch) : picture);
  shape.block_size = options.kv_block_size > 0 ? options.kv_block_size : device.sizing->kv_block_size();
  const int64_t tile_bytes =
      config.tokens_per_tile() * config.language.hidden * static_cast<int64_t>(size_of(activation));
  shape.embedding_tiles = options.embedding_cache_bytes
                              ? std::max<int64_t>(1, *options.embedding_cache_bytes / tile_bytes)
                              : kCachedPictures * picture;
  shape.host_tiles = options.tile_cache_bytes
                         ? *options.tile_cache_bytes / (3 * config.vision.image_size * config.vision.image_size)
                         : std::max(std::min(shape.max_sequences, kHostPictures) * picture,
                                    shape.session_len / config.tokens_per_tile());
  return shape;
}

int64_t largest_picture_bytes(const ModelConfig& config, const EngineOptions& options) {
  return largest_picture_tiles(config, options) * 3 * config.vision.image_size * config.vision.image_size;
}

Status check_options(const ModelConfig& config, const EngineOptions& options, std::span<const PlanDevice> devices,
                     const PlanLayout& layout) {
  if (devices.empty()) return invalid_input("a plan needs at least one device");
  if (options.tp < 1) return invalid_input("--tp is " + std::to_string(options.tp) + "; at least 1");
  if (!layout.layer_split && options.tp > static_cast<int>(devices.size()))
    return invalid_input("--tp " + std::to_string(options.tp) + " needs as many devices; there are " +
                         std::to_string(devices.size()));
  if (options.max_batch_size < 1) return invalid_input("--max-batch-size is " + std::to_string(options.max_batch_size) + "; at least 1");
  if (options.session_len && *options.session_len < 2)
    return invalid_input("--session-len is " + std::to_string(*options.session_len) + "; at least 2");
  if (options.tile_cache_bytes && *options.tile_cache_bytes < largest_picture_bytes(config, options))
    return invalid_input("--tile-cache is " + format_bytes(*options.tile_cache_bytes) + "; the tiles of one picture take " +
                         format_bytes(largest_picture_bytes(config, options)) + ": raise it or lower --max-dynamic-patch");
  if (options.cache_max_entry_count < 0 || options.cache_max_entry_count > 1)
    return invalid_input("--cache-max-entry-count is " + std::to_string(options.cache_max_entry_count) + "; expected 0..1");
  return {};
}

// Start-up on one device, counted.
Result<DevicePlan> count_device(const Checkpoint& checkpoint, const PlanDevice& device, const ModelShard& shard,
                                int ranks, const MemoryPlan& plan, const PlanLayout& layout) {
  const bool cpu = device.limits.kind == "cpu";
  CountingAllocator on_device, on_host;  // outlive what is counted in them
  PlanningBackend backend(device.limits, *device.sizing);
  TESSERA_ASSIGN_OR_RETURN(EngineMemory memory,
                           build_engine_memory(checkpoint, backend, on_device, cpu ? on_device : on_host, plan.shape,
                                               {.compute = plan.compute, .shard = shard}));
  DevicePlan out;
  out.name = device.limits.name;
  out.shard = shard;
  out.layers = memory.model->layers();
  out.kv_block_bytes = out.layers * static_cast<int64_t>(memory.kv.layout.block_bytes());
  for (size_t line = 0; line < kMemoryLineCount; ++line)
    out.lines[line] = static_cast<int64_t>(on_device.used(static_cast<MemoryLine>(line)));
  const auto add = [&](MemoryLine line, size_t bytes) { out.lines[static_cast<size_t>(line)] += static_cast<int64_t>(bytes); };
  const auto counted = static_cast<int64_t>(on_device.used());
  add(MemoryLine::kStaging, device.sizing->staging_bytes() + (cpu ? static_cast<size_t>(plan.preparation_bytes) : 0));
  add(MemoryLine::kGraphs, device.sizing->graph_bytes());
  add(MemoryLine::kDriver, device.sizing->driver_bytes());
  const auto message = static_cast<size_t>(plan.shape.step_tokens * checkpoint.config().language.hidden) *
                       size_of(memory.model->precision().residual);
  add(MemoryLine::kCommunication, device.sizing->communication_bytes(ranks, message, layout.peer_access));
  out.unallocated_bytes = out.total_bytes() - counted;
  return out;
}

// What each device of a layer split has for layers: all but what it takes with none, the tower and the embedding on the
// first, the head on the last.
Result<std::vector<int64_t>> rooms_for_layers(const Checkpoint& checkpoint, std::span<const PlanDevice> devices,
                                              std::span<const int64_t> capacities, const PlanLayout& layout, MemoryPlan plan) {
  const int64_t layers = checkpoint.config().language.layers;
  const auto last = devices.size() - 1;
  plan.shape.kv_blocks = 0;
  std::vector<int64_t> rooms;
  for (size_t r = 0; r <= last; ++r) {
    const ModelShard bare{.first_layer = r == 0 ? 0 : r == last ? layers : 1, .layer_count = 0, .vision = r == 0};
    TESSERA_ASSIGN_OR_RETURN(const DevicePlan device,
                             count_device(checkpoint, devices[r], bare, static_cast<int>(devices.size()), plan, layout));
    rooms.push_back(capacities[r] - device.total_bytes());
  }
  return rooms;
}

Status count_devices(const Checkpoint& checkpoint, std::span<const PlanDevice> devices, const EngineOptions& options,
                     const PlanLayout& layout, MemoryPlan& plan) {
  const int ranks = layout.layer_split ? static_cast<int>(devices.size()) : options.tp;
  std::vector<int64_t> capacities;
  for (const PlanDevice& device : devices)
    capacities.push_back(std::min(device.memory_bytes(), options.gpu_memory_limit.value_or(INT64_MAX)));
  std::vector<ModelShard> shards = share_layers(ranks, layout.vision);
  if (layout.layer_split) {
    TESSERA_ASSIGN_OR_RETURN(const auto rooms, rooms_for_layers(checkpoint, devices, capacities, layout, plan));
    shards = split_layers(checkpoint.config().language.layers, rooms);
  }
  plan.devices.clear();
  for (size_t r = 0; r < shards.size(); ++r) {
    TESSERA_ASSIGN_OR_RETURN(DevicePlan device, count_device(checkpoint, devices[r], shards[r], ranks, plan, layout));
    device.capacity_bytes = capacities[r];
    plan.devices.push_back(std::move(device));
  }
  return {};
}

// Blocks of the KV cache, the same on every device: the one with the least room decides.
int64_t choose_kv_blocks(const MemoryPlan& plan, const EngineOptions& options, bool cpu) {
  if (options.kv_cache_tokens) return ceil_div(*options.kv_cache_tokens, plan.shape.block_size);
  int64_t blocks = INT64_MAX;
  for (const DevicePlan& device : plan.devices) {
    if (device.kv_block_bytes == 0) continue;
    const double room = std::max<double>(0.0, static_cast<double>(device.free_bytes())) * options.cache_max_entry_count;
    blocks = std::min(blocks, static_cast<int64_t>(room) / device.kv_block_bytes);
  }
  if (cpu) blocks = std::min(blocks, plan.shape.max_blocks_per_sequence() * plan.shape.max_sequences);
  return std::min(blocks, int64_t{INT32_MAX} / plan.shape.block_size);  // slots are 32-bit
}

std::string explain(const MemoryPlan& plan) {
  const auto worst = std::min_element(plan.devices.begin(), plan.devices.end(), [](const DevicePlan& a, const DevicePlan& b) {
    return a.free_bytes() < b.free_bytes();
  });
  if (worst->free_bytes() < 0)
    return worst->name + " (rank " + std::to_string(worst - plan.devices.begin()) + ") lacks " +
           format_bytes(-worst->free_bytes()) + ": " + format_bytes(worst->total_bytes()) + " are needed, " +
           format_bytes(worst->capacity_bytes) + " are there";
  return "the KV cache holds " + std::to_string(plan.kv_cache_tokens) + " tokens, fewer than one session of " +
         std::to_string(plan.shape.session_len);
}

void summarise(const ModelConfig& config, MemoryPlan& plan) {
  const EngineShape& shape = plan.shape;
  plan.kv_cache_tokens = shape.kv_tokens();
  const int64_t session = std::min(shape.session_len, plan.kv_cache_tokens);
  plan.max_prompt_tokens = std::max<int64_t>(0, session - 1);
  // Two tokens around a picture, one of text, one new.
  plan.max_tiles_per_request = std::max<int64_t>(0, std::min(shape.host_tiles, (session - 4) / config.tokens_per_tile()));
  plan.max_tiles_per_picture = std::min(plan.max_tiles_per_request, shape.embedding_tiles);
  plan.requests_at_once = std::min(shape.max_sequences, shape.kv_blocks / shape.max_blocks_per_sequence());
  plan.fits = shape.kv_blocks >= shape.max_blocks_per_sequence() &&
              std::all_of(plan.devices.begin(), plan.devices.end(), [](const DevicePlan& d) { return d.free_bytes() >= 0; });
  if (!plan.fits) plan.reason = explain(plan);
}

}  // namespace

int64_t largest_picture_tiles(const ModelConfig& config, const EngineOptions& options) {
  const int64_t most = options.max_dynamic_patch.value_or(config.max_dynamic_patch);
  return most + (config.use_thumbnail && most > 1 ? 1 : 0);
}

int64_t DevicePlan::total_bytes() const { return std::accumulate(lines.begin(), lines.end(), int64_t{0}); }

std::vector<std::pair<std::string, int64_t>> DevicePlan::named_lines() const {
  std::vector<std::pair<std::string, int64_t>> named;
  for (size_t i = 0; i < kMemoryLineCount; ++i) named.emplace_back(memory_line_name(static_cast<MemoryLine>(i)), lines[i]);
  return named;
}

Result<MemoryPlan> plan_once(const Checkpoint& checkpoint, std::span<const PlanDevice> devices,
                             const EngineOptions& options, const PlanLayout& layout) {
  TESSERA_RETURN_IF_ERROR(check_options(checkpoint.config(), options, devices, layout));
  const ModelConfig& config = checkpoint.config();
  MemoryPlan plan;
  TESSERA_ASSIGN_OR_RETURN(plan.compute, compute_dtype(options.dtype, config.stored));
  plan.shape = resolve_shape(config, options, devices.front(), devices.front().sizing->precision(plan.compute).activation);
  plan.preparation_bytes =
      options.preparation_bytes.value_or(devices.front().limits.kind == "cpu" ? kCpuPreparationBytes : kHostPreparationBytes);
  TESSERA_RETURN_IF_ERROR(count_devices(checkpoint, devices, options, layout, plan));
  plan.shape.kv_blocks = choose_kv_blocks(plan, options, devices.front().limits.kind == "cpu");
  TESSERA_RETURN_IF_ERROR(count_devices(checkpoint, devices, options, layout, plan));
  plan.remarks = layout_remarks(config, static_cast<int>(plan.devices.size()), layout);
  summarise(config, plan);
  return plan;
}

Result<MemoryPlan> plan_memory(const Checkpoint& checkpoint, std::span<const PlanDevice> devices,
                               const EngineOptions& options, const PlanLayout& layout) {
  TESSERA_ASSIGN_OR_RETURN(MemoryPlan plan, plan_once(checkpoint, devices, options, layout));
  if (!plan.fits) plan.suggestions = find_suggestions(checkpoint, devices, options, layout, plan);
  return plan;
}

Status out_of_memory(const std::string& what, const Checkpoint& checkpoint, const PlanDevice& device, EngineOptions options,
                     int64_t room) {
  options.gpu_memory_limit = room;
  auto plan = plan_memory(checkpoint, {&device, 1}, options);
  if (!plan.ok()) return does_not_fit(what);
  if (plan->fits)
    return does_not_fit(what + "; " + format_bytes(room) + " are left for this process: it fits with --gpu-memory-limit " +
                        std::to_string(room >> 20) + "MiB");
  return does_not_fit(what + "; with the " + format_bytes(room) + " that are left for this process it " + does_not_fit_message(*plan));
}

std::string does_not_fit_message(const MemoryPlan& plan) {
  std::string message = "does not fit: " + plan.reason;
  for (size_t i = 0; i < plan.suggestions.size() && i < 3; ++i)
    message += (i == 0 ? "; it fits with " : ", or ") + plan.suggestions[i].text;
  return message;
}

std::string format_bytes(int64_t bytes) {
  const double value = static_cast<double>(bytes);
  char text[32];
  if (bytes >= int64_t{1} << 30)
    std::snprintf(text, sizeof(text), "%.2f GiB", value / (1 << 30));
  else
    std::snprintf(text, sizeof(text), "%.1f MiB", value / (1 << 20));
  return text;
}

}  // namespace tessera
