#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/allocator.h"
#include "core/device_limits.h"
#include "core/result.h"
#include "models/model.h"
#include "ops/backend.h"
#include "runtime/engine_shape.h"
#include "tessera/options.h"

namespace tessera {

/// Where the vision tower lies when there are several ranks.
enum class VisionPlacement : uint8_t {
  kFirst,  ///< whole on rank 0: least memory elsewhere
  kSplit,  ///< tensor-parallel like the language model; what does not divide is replicated
  kEach,   ///< whole on every rank, tiles dealt out (data-parallel)
};

/// How a model is spread over devices.
struct PlanLayout {
  bool layer_split = false;  ///< ranks hold ranges of layers instead of shares of every layer
  VisionPlacement vision = VisionPlacement::kFirst;
  bool peer_access = true;   ///< devices can read each other's memory
};

/// A device to plan for; it need not be there.
struct PlanDevice {
  DeviceLimits limits;
  const Sizing* sizing = nullptr;
  int64_t memory_bytes() const { return limits.memory_free_bytes > 0 ? limits.memory_free_bytes : limits.memory_bytes; }
};

/// What one device will hold.
struct DevicePlan {
  std::string name;
  ModelShard shard;
  int64_t layers = 0;            ///< of the language model, on this device
  int64_t capacity_bytes = 0;    ///< free when planned, or said by --gpu-memory-limit
  std::array<int64_t, kMemoryLineCount> lines{};  ///< by MemoryLine
  int64_t kv_block_bytes = 0;    ///< one block in all of this device's layers
  int64_t unallocated_bytes = 0; ///< of the total: what the driver, libraries and picture decoders take for themselves

  int64_t line(MemoryLine which) const { return lines[static_cast<size_t>(which)]; }
  int64_t total_bytes() const;
  int64_t free_bytes() const { return capacity_bytes - total_bytes(); }  ///< negative: does not fit
  /// Names and bytes, as statistics show them.
  std::vector<std::pair<std::string, int64_t>> named_lines() const;
  /// Bytes that allocators give out.
  int64_t allocated_bytes() const { return total_bytes() - unallocated_bytes; }
};

/// A change of settings that makes a plan fit, verified by planning with it.
struct PlanSuggestion {
  std::string text;      ///< "--session-len 8192"
  double cost = 0;       ///< how far it is from what was asked; the list is in this order
};

struct MemoryPlan {
  bool fits = false;
  std::string reason;            ///< when it does not: which device lacks how much for what
  EngineShape shape;
  int64_t preparation_bytes = 0;    ///< host memory for encoded pictures that wait and for decoding them
  DType compute = DType::kBF16;
  std::vector<DevicePlan> devices;  ///< one a rank
  std::vector<std::string> remarks; ///< what the layout costs beyond an even share, for people
  int64_t kv_cache_tokens = 0;
  int64_t max_prompt_tokens = 0;
  int64_t max_tiles_per_request = 0;
  int64_t max_tiles_per_picture = 0;  ///< as the embedding cache allows
  int64_t requests_at_once = 0;       ///< of session_len tokens each, all in the cache
  std::vector<PlanSuggestion> suggestions;  ///< smallest first; empty when it fits
};

/// Computes what an engine with these options will hold on each device, by running start-up's own code
/// (build_engine_memory) with counting allocators. `options` gives what a user may set; of `devices`, options.tp (or, with
/// layer_split, all) are used. Reads tensor headers only; needs no device. The KV cache takes kv_cache_tokens where given,
/// else cache_max_entry_count of what is left after all else (on the CPU at most session_len x max_batch_size tokens);
/// the plan fits when that holds one request of session_len. A plan that does not fit is a value, with suggestions.
/// Errors: options that make no sense, a model that can't be split so, the checkpoint's own.
Result<MemoryPlan> plan_memory(const Checkpoint& checkpoint, std::span<const PlanDevice> devices,
                               const EngineOptions& options, const PlanLayout& layout = {});

/// What an allocation that failed although the plan fitted comes to: `what` asked for how much, and the setting that fits
/// `room` bytes, which the device has now for this process in all.
Status out_of_memory(const std::string& what, const Checkpoint& checkpoint, const PlanDevice& device, EngineOptions options,
                     int64_t room);

/// The sentence for a plan that does not fit: reason and suggestions in one line.
std::string does_not_fit_message(const MemoryPlan& plan);

/// "17.31 GiB", "820.0 MiB".
std::string format_bytes(int64_t bytes);

}  // namespace tessera
