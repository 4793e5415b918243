#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tessera/engine.h"

namespace tessera {

/// Everything that decides what a model is loaded as and how much memory it may take; the shared options of the
/// command line (product.md) in one struct.
struct EngineOptions {
  std::string model;                       ///< directory, cached repository name, or "demo"
  std::string dtype = "auto";              ///< auto, bf16, f16, f32
  std::string device = "auto";             ///< auto, cpu, cuda
  std::string isa = "auto";
  int threads = 0;                         ///< 0: available cores
  int tp = 1;
  std::optional<int64_t> session_len;      ///< tokens of one conversation
  int64_t max_batch_size = 16;             ///< sequences in one step
  double cache_max_entry_count = 0.8;      ///< fraction of what is left after all else, for the KV cache
  std::optional<int64_t> kv_cache_tokens;  ///< says it outright
  std::optional<int64_t> gpu_memory_limit; ///< bytes
  std::vector<std::pair<std::string, int64_t>> limits;  ///< imposed on the device: shared_memory_per_block, ...
  std::string device_limits;               ///< a described GPU (a built-in name or a JSON file) to look like
  std::optional<int64_t> max_dynamic_patch;
  std::optional<int64_t> min_dynamic_patch;
  std::optional<int64_t> vision_batch;     ///< tiles in one vision pass
  std::optional<int64_t> max_prefill_tokens;  ///< token budget of one step
  int64_t kv_block_size = 0;               ///< 0: the backend's choice
  std::optional<int64_t> embedding_cache_bytes;
  std::optional<int64_t> tile_cache_bytes; ///< host memory for tiles of pictures: requests' under way and kept ones;
                                           ///< default: the largest picture for each of max_batch_size answers (at most 64)
  bool prefix_cache = true;
  bool exif_apply = false;
  int64_t max_image_pixels = 178956970;
  int64_t max_image_side = 1 << 20;
  int64_t max_image_bytes = int64_t{256} << 20;
  int64_t max_queue = 1024;                ///< requests waiting; more are refused
  std::optional<int64_t> preparation_bytes;  ///< host memory for pictures waiting to be decoded and being decoded;
                                             ///< default 32 MiB on the CPU (in the plan), 1 GiB beside a GPU
  std::optional<double> max_decode_wait_s; ///< a running stream waits at most about this for its next token while
                                           ///< pictures and prompts are computed; default 0.025, on the CPU 0.25
  std::function<void(size_t done, size_t total)> load_progress;
  /// Called once, on the engine's thread, when the device failed for good: all requests have ended with this reason, new
  /// ones are refused with it. Only a new process can use the device again.
  std::function<void(const Status& why)> on_lost;
};

struct LoadReport {
  struct Device {
    std::string name;           ///< "cpu", "cuda:0"
    int64_t planned_bytes = 0;  ///< the memory plan's total
  };
  double load_s = 0;
  std::vector<Device> devices;
};

/// Plans, loads and starts an engine. A plan that does not fit is kDoesNotFit with the smallest changes that would.
std::pair<std::unique_ptr<Engine>, Status> open_engine(const EngineOptions& options, LoadReport* report = nullptr);

}  // namespace tessera
