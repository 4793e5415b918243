#pragma once

// Tiles that several blocks make parts of, each some of K: their sums meet in device memory (L2), and each block ends some
// columns. Blocks make these parts first and read the sums last, when they have long arrived. All blocks of a launch run at once
// (one a multiprocessor), so that they may wait for each other.

#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/wgmma_rounds.h"

namespace tessera::cuda {

/// Where partial sums meet. Blocks are numbered block * parts + part.
struct SplitSums {
  float4* partial = nullptr;    ///< [blocks * parts][2 warpgroups][4 slices of 64 columns][8][128 threads]
  unsigned* arrived = nullptr;  ///< [blocks][2 warpgroups], zero between launches
};
inline constexpr int kSlices = 4;
inline constexpr int kMostParts = static_cast<int>(kWgmmaMostParts);
inline constexpr size_t kPartialBytes = 2 * kSlices * 8 * 128 * sizeof(float4);  ///< of a block's part

#ifdef TESSERA_WGMMA_HERE

__device__ __forceinline__ unsigned load_arrived(const unsigned* at) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}

/// Where slice i of a part's sums begins for thread `of` of the warpgroup that made them.
__device__ __forceinline__ float4* slice_of(const SplitSums& split, int block, int parts, int part, int own, int i, int of) {
  return split.partial + ((((block * parts + part) * 2 + own) * kSlices + i) * 8) * 128 + of;
}

/// A warpgroup writes its sums d of part `part` of a tile.
__device__ __forceinline__ void send_sums(const SplitSums& split, int block, int own, int part, int parts, const float* d) {
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    float4* to = slice_of(split, block, parts, part, own, i, static_cast<int>(threadIdx.x) % 128);
#pragma unroll
    for (int v = 0; v < 8; ++v) __stcg(to + v * 128, make_float4(d[32 * i + 4 * v], d[32 * i + 4 * v + 1], d[32 * i + 4 * v + 2], d[32 * i + 4 * v + 3]));
  }
}

/// Says that they are there: later, since a fence behind 128 KB of stores takes longer than they do in the background.
__device__ __forceinline__ void announce_sums(const SplitSums& split, int block, int own) {
  __threadfence();
  named_barrier_sync(1 + own, 128);
  if (threadIdx.x % 128 == 0) atomicAdd(split.arrived + block * 2 + own, 1u);
}

/// One thread: until all parts of a tile have been sent. Each block counts itself out, too; the last one leaves zero for the next launch.
__device__ __forceinline__ void wait_for_sums(const SplitSums& split, int block, int own, int parts) {
  unsigned* arrived = split.arrived + block * 2 + own;
  while (load_arrived(arrived) < static_cast<unsigned>(parts)) {}
  if (atomicAdd(arrived, 1u) == static_cast<unsigned>(2 * parts - 1)) *arrived = 0;
}

/// Slice i of a tile, whole, as thread `of` had it. Part after part is added, in an order that does not depend on who came first.
__device__ __forceinline__ void add_slice(const SplitSums& split, int block, int own, int parts, int i, int of, float (&sums)[32]) {
#pragma unroll
  for (float& sum : sums) sum = 0;
#pragma unroll
  for (int part = 0; part < kMostParts; ++part) {
    if (part >= parts) break;
    const float4* from = slice_of(split, block, parts, part, own, i, of);
    float4 got[8];
#pragma unroll
    for (int v = 0; v < 8; ++v) got[v] = __ldcg(from + v * 128);
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      sums[4 * v] += got[v].x;
      sums[4 * v + 1] += got[v].y;
      sums[4 * v + 2] += got[v].z;
      sums[4 * v + 3] += got[v].w;
    }
  }
}

#endif

}  // namespace tessera::cuda
