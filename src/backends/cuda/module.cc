#include "backends/cuda/backend.h"
#include "backends/cuda_choice/module_entry.h"

namespace tessera::cuda {
namespace {

const CudaModule kModule = {.discover = find_devices, .open = CudaBackend::open};

}  // namespace
}  // namespace tessera::cuda

extern "C" __attribute__((visibility("default"))) const tessera::CudaModule* tessera_cuda_module(int abi) {
  return abi == tessera::cuda::kModuleAbi ? &tessera::cuda::kModule : nullptr;
}
