#pragma once

// Rows of any floating dtype, four neighbouring elements at a time (vector_rows).

#include "backends/cuda/fast.cuh"

namespace tessera::cuda {

using plain::Elements;

__device__ __forceinline__ float4 load4(const Elements& e, int64_t row, int64_t column) {
  const int64_t at = row * e.stride + column;
  if (e.dtype == DType::kF32) return *reinterpret_cast<const float4*>(static_cast<const float*>(e.data) + at);
  const uint2 bits = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(e.data) + at);
  const float2 a = e.dtype == DType::kBF16 ? unpack2<__nv_bfloat16>(bits.x) : unpack2<__half>(bits.x);
  const float2 b = e.dtype == DType::kBF16 ? unpack2<__nv_bfloat16>(bits.y) : unpack2<__half>(bits.y);
  return make_float4(a.x, a.y, b.x, b.y);
}

__device__ __forceinline__ void store4(const Elements& e, int64_t row, int64_t column, float4 v) {
  const int64_t at = row * e.stride + column;
  if (e.dtype == DType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(e.data) + at) = v;
    return;
  }
  const bool bf = e.dtype == DType::kBF16;
  const uint2 bits = make_uint2(bf ? pack2<__nv_bfloat16>(v.x, v.y) : pack2<__half>(v.x, v.y),
                                bf ? pack2<__nv_bfloat16>(v.z, v.w) : pack2<__half>(v.z, v.w));
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(e.data) + at) = bits;
}

}  // namespace tessera::cuda
