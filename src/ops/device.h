#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/device_limits.h"

namespace tessera {

/// What a run asks of its device.
struct BackendOptions {
  std::string device = "auto";   ///< auto, cpu, cuda, cuda:1
  int threads = 0;               ///< CPU: 0 = available_cores()
  std::string isa = "auto";      ///< CPU: auto, plain, avx2, avx512, avx512_bf16, amx_bf16
  std::vector<std::pair<std::string, int64_t>> limits;  ///< `--limit NAME=VALUE`: imposed on the device's own
  std::string device_limits;     ///< `--device-limits NAME|FILE`: a GPU that this one is to look like
  bool tf32 = false;             ///< GPU, --dtype f32: allow TF32 products
};

/// A device that was looked for: what it is, or why it is not there.
struct DeviceReport {
  std::string name;    ///< "cpu", "cuda:0"
  bool available = false;
  DeviceLimits limits;
  std::string reason;  ///< when not available: what is missing, by name
  std::vector<std::pair<std::string, std::string>> facts;  ///< what `tessera doctor` tells: name, value
  std::vector<std::string> architectures;  ///< machine code in the backend's module
};

}  // namespace tessera
