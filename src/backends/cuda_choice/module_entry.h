#pragma once

#include "ops/cuda_module.h"

namespace tessera::cuda {

/// The module and the program are built from one tree by one compiler and exchange C++ values; the number guards against
/// a module of another build. Raised whenever a type that crosses the boundary changes.
inline constexpr int kModuleAbi = 1;

/// The only symbol of the module: its table, or null when `abi` is not its own.
inline constexpr const char* kModuleEntry = "tessera_cuda_module";
using ModuleEntry = const CudaModule* (*)(int abi);

}  // namespace tessera::cuda
