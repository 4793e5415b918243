#include "cli/serving_floor.h"

#include <algorithm>

#include "backends/registry.h"
#include "cli/bench_work.h"
#include "models/checkpoint.h"

namespace tessera::cli {

Result<ServingFloor> probe_serving_floor(const EngineOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(options.model));
  TESSERA_ASSIGN_OR_RETURN(
      const std::unique_ptr<Backend> backend,
      open_backend({.device = options.device, .threads = options.threads, .isa = options.isa, .limits = options.limits}));
  ServingFloor floor;
  floor.config = checkpoint.config();
  DType compute = floor.config.stored;
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32})
    if (options.dtype == dtype_name(dtype)) compute = dtype;
  floor.element_bytes = static_cast<int64_t>(size_of(compute));
  floor.speed = backend->measure_speed(compute);
  return floor;
}

double serving_floor_s(const ServingFloor& floor, const EngineStats& before, const EngineStats& after,
                       const ServingResult& result) {
  const auto since = [](uint64_t then, uint64_t now) { return static_cast<int64_t>(now - then); };
  const int64_t tiles = since(before.tiles_encoded, after.tiles_encoded);
  const int64_t requests = std::max<int64_t>(result.completed, 1);
  const int64_t prompts = since(before.prompt_tokens, after.prompt_tokens);
  const int64_t computed = prompts - since(before.prefix_cache_hit_tokens, after.prefix_cache_hit_tokens);
  const int64_t fresh = since(before.generated_tokens, after.generated_tokens) - requests;  // the first comes with the prompt
  const int64_t steps = std::max<int64_t>(since(before.steps, after.steps), 1);
  double seconds = 0;
  if (tiles > 0) seconds += floor_seconds(vision_work(floor.config, tiles, floor.element_bytes), floor.speed);
  if (computed > 0) {
    // Prompts share steps, so their weights' traffic is left out.
    Work one = prefill_work(floor.config, std::max<int64_t>(computed / requests, 1), floor.element_bytes);
    one.bytes = 0;
    seconds += static_cast<double>(requests) * floor_seconds(one, floor.speed);
  }
  if (fresh > 0) {
    const int64_t width = std::max<int64_t>((fresh + steps - 1) / steps, 1);
    const int64_t context = prompts / requests + result.new_tokens / requests / 2;
    seconds += static_cast<double>(fresh) / static_cast<double>(width) *
               floor_seconds(decode_work(floor.config, width, context, floor.element_bytes), floor.speed);
  }
  return seconds;
}

}  // namespace tessera::cli
