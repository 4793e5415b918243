#pragma once

// The small header of names that the plain family is written in. Kernels of this folder use these names, plain C++
// and nothing else: no inline assembly, no fixed warp size, no header of a maker beyond its runtime's. They are compiled
// by nvcc, by hipcc (other makers' GPUs), and as ordinary C++ under the emulation of emulated.h (TESSERA_EMULATED).
// A kernel takes one parameter, a plain struct. Shared memory is dynamic only and at most 48 KB.

#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "core/tensor.h"
#include "ops/context.h"

namespace tessera::cuda {

struct Grid {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

/// Device memory of the stream's backend for the length of one operator; grows when it was not reserved large enough.
/// Two calls in one operator return the same memory.
void* operator_scratch(Stream& stream, size_t bytes, const char* op);

}  // namespace tessera::cuda

#if defined(TESSERA_EMULATED)

#include "backends/cuda/plain/emulated.h"

#elif defined(__CUDACC__) || defined(__HIPCC__)

#if defined(__HIPCC__)
#include <hip/hip_runtime.h>
#else
#include <cuda_runtime.h>
#endif

#define TESSERA_DEVICE __device__ __forceinline__
#define TESSERA_KERNEL(max_threads) static __global__ __launch_bounds__(max_threads) void

namespace tessera::cuda {

/// The door of every launch (launch.cc): checks, names, counts.
void launch_raw(Stream& stream, const char* name, Grid grid, int threads, size_t shared, const void* kernel,
                void** arguments);

template <class P>
void launch(Stream& stream, const char* name, Grid grid, int threads, size_t shared, void (*kernel)(P), P parameters) {
  void* arguments[] = {&parameters};
  launch_raw(stream, name, grid, threads, shared, reinterpret_cast<const void*>(kernel), arguments);
}

namespace plain {

TESSERA_DEVICE int thread_id() { return static_cast<int>(threadIdx.x); }
TESSERA_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
TESSERA_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
TESSERA_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
TESSERA_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
TESSERA_DEVICE int warp_lanes() { return warpSize; }
TESSERA_DEVICE void barrier() { __syncthreads(); }
TESSERA_DEVICE float warp_shuffle_xor(float v, int mask) {
#if defined(__HIPCC__)
  return __shfl_xor(v, mask);
#else
  return __shfl_xor_sync(0xffffffffu, v, mask);
#endif
}
TESSERA_DEVICE void shared_add(unsigned long long* at, unsigned long long v) { atomicAdd(at, v); }
TESSERA_DEVICE void shared_max(unsigned long long* at, unsigned long long v) { atomicMax(at, v); }
TESSERA_DEVICE void* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char tessera_shared_memory[];
  return tessera_shared_memory;
}

}  // namespace plain
}  // namespace tessera::cuda

#endif

#if defined(TESSERA_DEVICE)

namespace tessera::cuda::plain {

/// binary16 to float, exact, with integer operations and one multiplication (also for subnormals).
TESSERA_DEVICE float half_to_float(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  if ((bits & 0x7c00u) == 0x7c00u) return std::bit_cast<float>(sign | 0x70000000u | magnitude | 0x0f800000u);
  const float scaled = std::bit_cast<float>(magnitude) * 5.192296858534828e+33f;  // 2^112: the exponents' biases differ
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | sign);
}

/// float to binary16, round to nearest even; overflow becomes infinity, NaN stays NaN.
TESSERA_DEVICE uint16_t float_to_half(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // >= 65520
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 lets the adder round at the subnormals' last bit
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(rounded) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

TESSERA_DEVICE float load_element(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  if (dtype == DType::kF16) return half_to_float(bits);
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

TESSERA_DEVICE void store_element(void* data, DType dtype, int64_t index, float v) {
  if (dtype == DType::kF32) {
    static_cast<float*>(data)[index] = v;
    return;
  }
  uint16_t bits;
  if (dtype == DType::kF16) {
    bits = float_to_half(v);
  } else {
    const uint32_t u = std::bit_cast<uint32_t>(v);
    bits = (u & 0x7fffffffu) > 0x7f800000u ? static_cast<uint16_t>((u >> 16) | 0x40u)
                                           : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  static_cast<uint16_t*>(data)[index] = bits;
}

/// A matrix of any floating dtype as kernels take it. The dtype is looked at per element: one instance of a plain
/// kernel serves all dtypes, and the branch is the same for all threads.
struct Elements {
  void* data = nullptr;
  int64_t stride = 0;  ///< elements between rows
  DType dtype = DType::kF32;

  TESSERA_DEVICE float get(int64_t row, int64_t column) const { return load_element(data, dtype, row * stride + column); }
  TESSERA_DEVICE void set(int64_t row, int64_t column, float v) const {
    store_element(data, dtype, row * stride + column, v);
  }
};

inline Elements elements(const Tensor& t) { return {t.data, t.row_stride, t.dtype}; }

/// Sum over the block, the same bits in every thread. `scratch` holds 64 floats. All threads take part.
TESSERA_DEVICE float block_sum(float v, float* scratch) {
  const int lanes = warp_lanes();
  for (int mask = lanes / 2; mask > 0; mask /= 2) v += warp_shuffle_xor(v, mask);
  if (thread_id() % lanes == 0) scratch[thread_id() / lanes] = v;
  barrier();
  float sum = 0;
  for (int w = 0; w < block_threads() / lanes; ++w) sum += scratch[w];
  barrier();
  return sum;
}

TESSERA_DEVICE float block_max(float v, float* scratch) {
  const int lanes = warp_lanes();
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    const float other = warp_shuffle_xor(v, mask);
    v = other > v ? other : v;
  }
  if (thread_id() % lanes == 0) scratch[thread_id() / lanes] = v;
  barrier();
  float best = scratch[0];
  for (int w = 1; w < block_threads() / lanes; ++w) best = scratch[w] > best ? scratch[w] : best;
  barrier();
  return best;
}

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

}  // namespace tessera::cuda::plain

#endif  // TESSERA_DEVICE
