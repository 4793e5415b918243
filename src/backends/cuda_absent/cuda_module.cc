#include "ops/cuda_module.h"

namespace tessera {

Result<const CudaModule*> open_cuda_module() {
  return unavailable("this build has no CUDA backend: nvcc was not there when it was configured");
}

Result<std::unique_ptr<Sizing>> open_cuda_sizing(const DeviceLimits& limits) {
  return invalid_input("device " + limits.name + ": this build has no CUDA backend to plan for; use --devices cpu:SIZE");
}

}  // namespace tessera
