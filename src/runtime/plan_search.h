#pragma once

#include <span>
#include <vector>

#include "runtime/memory_plan.h"

namespace tessera {

/// plan_memory without the search for suggestions.
Result<MemoryPlan> plan_once(const Checkpoint& checkpoint, std::span<const PlanDevice> devices,
                             const EngineOptions& options, const PlanLayout& layout);

/// Tiles of the largest picture that the settings ask for, thumbnail included.
int64_t largest_picture_tiles(const ModelConfig& config, const EngineOptions& options);

/// Changes of settings with which a plan that does not fit fits, the smallest change first. Each is found by planning
/// again: a setting is lowered by halves until the plan fits, alone, else several together, else more devices.
std::vector<PlanSuggestion> find_suggestions(const Checkpoint& checkpoint, std::span<const PlanDevice> devices,
                                             const EngineOptions& options, const PlanLayout& layout,
                                             const MemoryPlan& plan);

}  // namespace tessera
