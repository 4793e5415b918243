#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/device_limits.h"
#include "core/result.h"

namespace tessera::cuda {

/// Names of the built-in descriptions: h200, h100, a100, rtx4090, rtx3090, mxc500.
std::vector<std::string> built_in_devices();

/// A built-in description by its name, or a JSON file (anything with a '.' or '/') whose members are the fields of
/// DeviceLimits. Errors: unknown name (the known ones are listed), unknown field, value out of range.
Result<DeviceLimits> describe_device(const std::string& name_or_file);

/// Imposes `--limit NAME=VALUE` pairs. A limit can only lower what the device has (an unknown, 0, is set). Setting
/// shared_memory_per_block bounds the opt-in, too: it is what any kernel may use. Errors: unknown name, value not
/// positive, value above the device's own.
Status impose_limits(DeviceLimits& limits, const std::vector<std::pair<std::string, int64_t>>& imposed);

/// Makes the device look like the described one where that has less: what --device-limits asks of a run. What the
/// description does not know stays the device's own.
void impose_description(DeviceLimits& limits, const DeviceLimits& described);

}  // namespace tessera::cuda
