#pragma once

#include <memory>
#include <vector>

#include "core/result.h"
#include "ops/backend.h"
#include "ops/device.h"

namespace tessera {

/// Looks for all devices. Never fails; the CPU is always there.
std::vector<DeviceReport> discover_devices();

/// Opens a device. `auto` takes the first GPU that works, else the CPU, and says which in Backend::limits().
Result<std::unique_ptr<Backend>> open_backend(const BackendOptions& options);

/// A device's limits by a built-in description's name (rtx3090, h200, ...) or from a JSON file whose members are the fields
/// of DeviceLimits. Errors: an unknown name (the known ones are listed), a bad field.
Result<DeviceLimits> describe_device(const std::string& name_or_file);

/// Imposes `--limit NAME=VALUE` pairs on a described device. Errors: an unknown name, a value above the device's own.
Status impose_limits(DeviceLimits& limits, const std::vector<std::pair<std::string, int64_t>>& imposed);

/// What Backend::explain says, for a described GPU. `imposed`: a limit was imposed on it.
std::vector<KernelChoice> explain_device(const DeviceLimits& limits, bool imposed, DType compute);

/// The sizing functions of a kind of device that need not be there ("cpu", "cuda") under these limits: for plans.
Result<std::unique_ptr<Sizing>> open_sizing(const DeviceLimits& limits);

}  // namespace tessera
