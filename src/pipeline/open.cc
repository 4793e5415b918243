#include <chrono>

#include "backends/registry.h"
#include "models/checkpoint.h"
#include "pipeline/chat_engine.h"
#include "runtime/memory_plan.h"
#include "tessera/options.h"

namespace tessera {
namespace {

Status check_options(const EngineOptions& options) {
  if (options.tp != 1)
    return invalid_input("--tp is " + std::to_string(options.tp) +
                         "; this build computes on one device (tessera plan --tp shows what several would hold)");
  if (options.min_dynamic_patch && options.max_dynamic_patch && *options.min_dynamic_patch > *options.max_dynamic_patch)
    return invalid_input("--min-dynamic-patch " + std::to_string(*options.min_dynamic_patch) +
                         " exceeds --max-dynamic-patch " + std::to_string(*options.max_dynamic_patch));
  return {};
}

BackendOptions backend_options(const EngineOptions& options) {
  BackendOptions out;
  out.device = options.device;
  out.threads = options.threads;
  out.isa = options.isa;
  out.limits = options.limits;
  out.device_limits = options.device_limits;
  return out;
}

ModelInfo model_info(const Checkpoint& checkpoint, const EngineOptions& options, const EngineShape& shape,
                     int64_t max_tiles) {
  const ModelConfig& config = checkpoint.config();
  ModelInfo info;
  info.name = checkpoint.name();
  info.session_len = shape.session_len;
  info.tokens_per_tile = config.tokens_per_tile();
  info.image_size = config.vision.image_size;
  info.max_dynamic_patch = options.max_dynamic_patch.value_or(config.max_dynamic_patch);
  info.min_dynamic_patch = options.min_dynamic_patch.value_or(config.min_dynamic_patch);
  info.use_thumbnail = config.use_thumbnail;
  info.max_tiles_per_request = std::min(max_tiles, shape.host_tiles);
  info.kv_cache_tokens = shape.kv_tokens();
  return info;
}

// Plans for the opened device and imposes the plan on its allocator: what the plan did not count cannot be taken.
Result<MemoryPlan> plan_for(const Checkpoint& checkpoint, Backend& backend, const EngineOptions& options) {
  const PlanDevice device = {.limits = backend.limits(), .sizing = &backend.sizing()};
  TESSERA_ASSIGN_OR_RETURN(MemoryPlan plan, plan_memory(checkpoint, {&device, 1}, options));
  if (!plan.fits) return does_not_fit(does_not_fit_message(plan));
  backend.allocator().limit(static_cast<size_t>(plan.devices[0].allocated_bytes()));
  return plan;
}

// On a CPU the host's memory is the device's: one account, one limit.
Allocator& host_of(Backend& backend) {
  return backend.limits().kind == "cpu" ? backend.allocator() : backend.host_allocator();
}

// Somebody else took memory of the device between the plan and the allocation.
Status out_of_memory_now(const std::string& what, const Checkpoint& checkpoint, Backend& backend, const EngineOptions& options) {
  const PlanDevice device = {.limits = backend.limits(), .sizing = &backend.sizing()};
  for (const DeviceReport& report : discover_devices())
    if (report.available && report.limits.kind == "cuda" && report.limits.name == device.limits.name)
      return out_of_memory(what, checkpoint, device, options,
                           report.limits.memory_free_bytes + static_cast<int64_t>(backend.sizing().driver_bytes()));
  return does_not_fit(what);
}

Result<EngineMemory> build_memory(const Checkpoint& checkpoint, Backend& backend, const MemoryPlan& plan,
                                  const EngineOptions& options) {
  LoadOptions load;
  load.compute = plan.compute;
  load.progress = options.load_progress;
  try {
    auto memory = build_engine_memory(checkpoint, backend, backend.allocator(), host_of(backend), plan.shape, load);
    if (memory.ok() || memory.status().code() != StatusCode::kDoesNotFit) return memory;
    return out_of_memory_now(memory.status().message(), checkpoint, backend, options);
  } catch (const OutOfMemory& error) {
    return out_of_memory_now(error.what(), checkpoint, backend, options);
  }
}

LoadReport load_report(const MemoryPlan& plan, double load_s) {
  LoadReport report;
  report.load_s = load_s;
  for (const DevicePlan& device : plan.devices) report.devices.push_back({device.name, device.total_bytes()});
  return report;
}

Result<std::unique_ptr<Engine>> open_checked(const EngineOptions& options, LoadReport* report) {
  const auto begin = std::chrono::steady_clock::now();
  TESSERA_RETURN_IF_ERROR(check_options(options));
  TESSERA_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(options.model));
  TESSERA_ASSIGN_OR_RETURN(ModelWords words, load_words(checkpoint.directory(), checkpoint.config()));
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, open_backend(backend_options(options)));
  TESSERA_ASSIGN_OR_RETURN(MemoryPlan plan, plan_for(checkpoint, *backend, options));
  TESSERA_ASSIGN_OR_RETURN(EngineMemory memory, build_memory(checkpoint, *backend, plan, options));
  const HostMemory host{.tiles = static_cast<uint8_t*>(memory.host_tiles.data()),
                        .tile_slots = plan.shape.host_tiles,
                        .preparation_bytes = plan.preparation_bytes};
  TokenEngineOptions engine_options;
  engine_options.valid_ids = std::min<int64_t>(words.tokenizer->vocab_size(), checkpoint.config().language.vocab);
  engine_options.max_queue = options.max_queue;
  engine_options.max_decode_wait_s = options.max_decode_wait_s;
  engine_options.prefix_cache = options.prefix_cache;
  engine_options.on_lost = options.on_lost;
  engine_options.memory_planned = plan.devices[0].named_lines();
  auto tokens = std::make_unique<TokenEngine>(*backend, std::move(memory), engine_options);
  const ModelInfo info = model_info(checkpoint, options, plan.shape, tokens->max_tiles_per_request());
  if (report) *report = load_report(plan, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  return std::unique_ptr<Engine>(std::make_unique<ChatEngine>(info, checkpoint.config(), std::move(words), options,
                                                              std::move(backend), std::move(tokens), host));
}

}  // namespace

std::pair<std::unique_ptr<Engine>, Status> open_engine(const EngineOptions& options, LoadReport* report) {
  try {
    auto engine = open_checked(options, report);
    if (!engine.ok()) return {nullptr, engine.status()};
    return {std::move(*engine), Status()};
  } catch (const OutOfMemory& error) {
    return {nullptr, does_not_fit(error.what())};
  } catch (const DeviceError& error) {
    return {nullptr, internal_error(error.what())};
  }
}

}  // namespace tessera
