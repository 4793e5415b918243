#pragma once

#include <memory>
#include <vector>

#include "core/result.h"
#include "ops/backend.h"
#include "ops/device.h"

namespace tessera {

/// What a loaded CUDA module offers. The module is a shared object that is opened at run time, so that the program starts
/// where no driver is.
struct CudaModule {
  std::vector<DeviceReport> (*discover)() = nullptr;
  Result<std::unique_ptr<Backend>> (*open)(const BackendOptions& options) = nullptr;
};

/// The CUDA backend's module, or why it is not there (what is missing, by name). Opened once, kept until the end. Where
/// CUDA is not built, cuda_absent/ answers.
Result<const CudaModule*> open_cuda_module();

/// The sizing functions of the CUDA backend: plain host code, there in every build, so that a plan needs no device.
Result<std::unique_ptr<Sizing>> open_cuda_sizing(const DeviceLimits& limits);

}  // namespace tessera
