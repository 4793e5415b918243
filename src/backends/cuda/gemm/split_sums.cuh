#pragma once

// Tiles that several blocks make parts of, each some of K: their sums meet in device memory (L2), and each block ends some
// columns. All blocks of a launch run at once (one a multiprocessor), so that they may wait for each other.

#include "backends/cuda/wgmma.cuh"

namespace tessera::cuda {

/// Where partial sums meet. Blocks are numbered block * parts + part.
struct SplitSums {
  float4* partial = nullptr;    ///< [blocks * parts][2 warpgroups][4 slices of 64 columns][8][128 threads]
  unsigned* arrived = nullptr;  ///< [blocks][2 warpgroups], zero between launches
};
inline constexpr int kSlices = 4;
inline constexpr size_t kPartialBytes = 2 * kSlices * 8 * 128 * sizeof(float4);  ///< of a block's part

#ifdef TESSERA_WGMMA_HERE

__device__ __forceinline__ unsigned load_arrived(const unsigned* at) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}

/// A warpgroup's sums d of part `part`: afterwards the slices i of 64 columns with i % parts == part are whole. Part after
/// part is added in an order that does not depend on who comes first.
__device__ __forceinline__ void exchange_sums(const SplitSums& split, int block, int own, int part, int parts, float (&d)[128]) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  auto slice = [&](int of, int i) { return split.partial + ((((block * parts + of) * 2 + own) * kSlices + i) * 8) * 128 + thread; };
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    if (i % parts == part) continue;
    float4* to = slice(part, i);
#pragma unroll
    for (int v = 0; v < 8; ++v) __stcg(to + v * 128, make_float4(d[32 * i + 4 * v], d[32 * i + 4 * v + 1], d[32 * i + 4 * v + 2], d[32 * i + 4 * v + 3]));
  }
  __threadfence();
  named_barrier_sync(1 + own, 128);
  if (thread == 0) {
    unsigned* arrived = split.arrived + block * 2 + own;
    atomicAdd(arrived, 1u);
    while (load_arrived(arrived) < static_cast<unsigned>(parts)) {}
  }
  named_barrier_sync(1 + own, 128);
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    if (i % parts != part) continue;
    for (int of = 0; of < parts; ++of) {
      if (of == part) continue;
      const float4* from = slice(of, i);
      float4 got[8];
#pragma unroll
      for (int v = 0; v < 8; ++v) got[v] = __ldcg(from + v * 128);
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        d[32 * i + 4 * v] += got[v].x;
        d[32 * i + 4 * v + 1] += got[v].y;
        d[32 * i + 4 * v + 2] += got[v].z;
        d[32 * i + 4 * v + 3] += got[v].w;
      }
    }
  }
  // Each counts itself out; the last one leaves zero for the next launch.
  if (thread == 0 && atomicAdd(split.arrived + block * 2 + own, 1u) == static_cast<unsigned>(2 * parts - 1)) split.arrived[block * 2 + own] = 0;
}

#endif

}  // namespace tessera::cuda
