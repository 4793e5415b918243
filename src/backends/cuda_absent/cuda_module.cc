#include "ops/cuda_module.h"

namespace tessera {

Result<const CudaModule*> open_cuda_module() {
  return Status(StatusCode::kUnavailable, "this build does not look for the CUDA module (TESSERA_CUDA_LOADER=OFF)");
}

}  // namespace tessera
