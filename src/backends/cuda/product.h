#pragma once

// A product on its way to a kernel, for the operators that are more than one.

#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/launch.h"
#include "backends/cuda_choice/weight_layout.h"
#include "ops/linear.h"

namespace tessera::cuda {

/// The input is converted and padded where the kernels need it.
struct Product {
  LinearArgs args;
  EpilogueParams end;
  PackedShape packed;
  int64_t k = 0;  ///< a multiple of 8 for 16-bit weights, with zeros in the padding
};
/// `segment`: see EpilogueParams.
Product prepare(Stream& stream, const LinearArgs& args, int64_t segment);
GemmParams gemm_params(const Product& p);

/// The library's product, whole or in row pieces through scratch. Returns whether the following norm was made, too.
bool library_linear(CudaStream& stream, const Product& p);
/// The kernel that suits the product, and the norm that follows.
void run_product(Stream& stream, const LinearArgs& args, int64_t segment);

}  // namespace tessera::cuda
