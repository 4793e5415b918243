#pragma once

#include <string>

#include "cli/serving_run.h"
#include "core/result.h"
#include "models/config.h"
#include "ops/backend.h"
#include "tessera/options.h"

namespace tessera::cli {

/// What a serving run's share of the hardware's floor is worked out from.
struct ServingFloor {
  ModelConfig config;
  int64_t element_bytes = 2;
  DeviceSpeed speed;  ///< probed before the engine starts
};

/// Probes the device that `options` choose. Errors: the checkpoint's, the device's.
Result<ServingFloor> probe_serving_floor(const EngineOptions& options);

/// Seconds that the device needs at least for what the engine computed between two moments: the tiles that it encoded, the
/// prompt tokens that no cache held, and the new tokens in steps as wide as its own.
double serving_floor_s(const ServingFloor& floor, const EngineStats& before, const EngineStats& after,
                       const ServingResult& result);

}  // namespace tessera::cli
