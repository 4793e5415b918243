#include "backends/cuda/wgmma.cuh"

#include "backends/cuda/launch.h"

#include <algorithm>
#include <vector>

namespace tessera::cuda {

namespace {

/// Boxes of 16-bit elements in rows of 128 bytes are swizzled. `strides`: bytes, from the second dimension on.
CUtensorMap encode(DType dtype, const void* base, const std::vector<cuuint64_t>& sizes,
                   const std::vector<cuuint64_t>& strides, const std::vector<cuuint32_t>& box) {
  const bool f32 = dtype == DType::kF32;
  // From the driver by name: the module does not link libcuda.
  static const auto kEncode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) throw DeviceError("[cuda] the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  CUtensorMap map;
  const std::vector<cuuint32_t> step(sizes.size(), 1);
  const CUresult result = kEncode(
      &map,
      f32                      ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
      : dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      static_cast<cuuint32_t>(sizes.size()), const_cast<void*>(base), sizes.data(), strides.data(), box.data(), step.data(),
      CU_TENSOR_MAP_INTERLEAVE_NONE, f32 ? CU_TENSOR_MAP_SWIZZLE_NONE : CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return map;
  std::string shape;
  for (cuuint64_t size : sizes) shape += (shape.empty() ? "" : " x ") + std::to_string(size);
  throw DeviceError("[cuda] a tensor map of " + shape + ", rows of " + std::to_string(strides[0]) +
                    " bytes, was refused with code " + std::to_string(static_cast<int>(result)));
}

}  // namespace

CUtensorMap tensor_map(DType dtype, const void* base, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  return encode(dtype, base, {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)},
                {static_cast<cuuint64_t>(stride) * 2}, {64, static_cast<cuuint32_t>(box_rows)});
}

CUtensorMap dealt_map(DType dtype, const void* base, int64_t rows, int64_t columns, int64_t stride, int box_rows, int run) {
  const auto bytes = static_cast<cuuint64_t>(stride) * 2, group = static_cast<cuuint64_t>(4 * run), pairs = static_cast<cuuint64_t>(run / 2);
  return encode(dtype, base, {static_cast<cuuint64_t>(columns), 2, 4, pairs, static_cast<cuuint64_t>(rows) / group},
                {bytes, bytes * static_cast<cuuint64_t>(run), bytes * 2, bytes * group},
                {64, 2, 4, static_cast<cuuint32_t>(pairs), static_cast<cuuint32_t>(box_rows / (4 * run))});
}

CUtensorMap float_map(const float* base, int64_t rows, int64_t columns, int64_t stride, int box_columns, int box_rows) {
  return encode(DType::kF32, base, {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)},
                {static_cast<cuuint64_t>(stride) * 4}, {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)});
}

CUtensorMap kv_map(const KvView& kv, int most_tokens) {
  const KvLayout& l = kv.layout;
  const auto dim = static_cast<cuuint64_t>(l.head_dim), tokens = static_cast<cuuint64_t>(l.block_size),
             heads = 2 * static_cast<cuuint64_t>(l.kv_heads);
  return encode(l.dtype, kv.base, {dim, tokens, heads, static_cast<cuuint64_t>(kv.blocks)},
                {dim * 2, tokens * dim * 2, static_cast<cuuint64_t>(l.block_bytes())},
                {64, static_cast<cuuint32_t>(std::min(l.block_size, most_tokens)), 1, 1});
}

}  // namespace tessera::cuda
