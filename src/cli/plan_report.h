#pragma once

#include <string>

#include "core/json.h"
#include "runtime/memory_plan.h"

namespace tessera::cli {

/// The JSON object of `tessera plan --json` (docs/engine.md has the formula behind its lines).
Json plan_json(const MemoryPlan& plan);

/// The table of `tessera plan`: a column a device, a row an item, what is left for requests, and why it does not fit.
std::string plan_table(const MemoryPlan& plan, const std::string& model, double cache_ratio);

}  // namespace tessera::cli
