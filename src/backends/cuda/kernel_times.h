#pragma once

#include <cuda_runtime.h>

namespace tessera::cuda {

/// TESSERA_CUDA_TIMES=1: the device time of every launch outside of graphs, summed by kernel and printed to stderr at the
/// end of the program. Kernels then run one after the other, without the overlap that dependent launches allow.
class KernelTimes {
 public:
  /// Null unless asked for.
  static KernelTimes* get();
  void begin(cudaStream_t stream);
  void end(const char* name, cudaStream_t stream);
};

}  // namespace tessera::cuda
