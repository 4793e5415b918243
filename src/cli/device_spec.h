#pragma once

#include <string>
#include <vector>

#include "core/device_limits.h"
#include "core/result.h"

namespace tessera::cli {

/// The devices that `--devices` names: "4x24GiB" (accelerators of this memory), "cpu:24GiB", "4xrtx3090" (a built-in
/// description), several joined by commas, or "auto" (what is there: the GPUs, else the CPU). Errors name the part that
/// is wrong and what is expected.
Result<std::vector<DeviceLimits>> parse_devices(const std::string& spec);

/// What is there of "cpu", "cuda" (all GPUs), "cuda:N" or "auto" (the GPUs, else the CPU). Errors: there is none, with the
/// reason.
Result<std::vector<DeviceLimits>> present_devices(const std::string& device);

}  // namespace tessera::cli
