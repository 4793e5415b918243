#pragma once

#include "backends/cuda/launch.h"
#include "backends/cuda/plain/epilogue_math.h"
#include "ops/linear.h"

namespace tessera::cuda {

/// A product with its epilogue, as the dense kernels of this folder take it. All of them require: 16-bit operands of one
/// dtype, 16-byte aligned rows (k a multiple of 8), out and residual with even strides.
struct GemmParams {
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* weight = nullptr;
  int64_t weight_stride = 0;
  int64_t m = 0;
  int64_t packed_rows = 0;  ///< of the weight: a multiple of 64
  int64_t k = 0;
  bool gated = false;
  bool gelu = false;
  EpilogueParams end;
  uint8_t end_kind = 0;  ///< EndKind (fast.cuh); the launch fills it in
};

/// sm_80: 128 x 128 tiles, three stages, 48 KB.
void mma_linear(Stream& stream, DType dtype, const GemmParams& p);
/// sm_90a: bulk tensor copies and wgmma, persistent tiles of 128 x 256 or 128 x 128.
void wgmma_linear(Stream& stream, DType dtype, const GemmParams& p);
/// Up to 32 rows: streams the weight once, tensor cores only as wide dot products. sm_80.
void skinny_linear(Stream& stream, DType dtype, const GemmParams& p);
inline constexpr int64_t kSkinnyRows = 32;

}  // namespace tessera::cuda
