#include <algorithm>

#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/narrow_shape.h"

namespace tessera::cuda {
namespace {

// More rows than a dot product serves, too few to fill a tile of the dense kernels: the weight's rows are wgmma's 64 rows,
// the tokens its columns. What counts is the stream of the weight: a block takes a slab of its rows, as many as give every
// multiprocessor the same (narrow_shape.h), and reads x once for all of them. Where slabs are few a cluster shares K and
// adds up through its members' shared memory.
constexpr int kConsumers = 256;
constexpr int kThreads = kConsumers + 32;
constexpr int kDepth = 64;  ///< a swizzled row of 128 bytes
constexpr int kBarrierBytes = 1024;

struct NarrowParams {
  CUtensorMap x, weight;
  GemmParams g;
  NarrowShape shape;
};

#ifdef TESSERA_WGMMA_HERE

__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ float2 load_of_rank(uint32_t address, int rank) {
  uint32_t there;
  float2 v;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(there) : "memory");
  return v;
}

/// The block's way through shared memory, the same for both sides of the ring.
struct Ring {
  uint32_t barriers, first;
  int stages, x_bytes, bytes;
  __device__ uint32_t x(int s) const { return first + static_cast<uint32_t>(s * bytes); }
  __device__ uint32_t weight(int s) const { return x(s) + static_cast<uint32_t>(x_bytes); }
  __device__ uint32_t full(int s) const { return barriers + static_cast<uint32_t>(s) * 16; }
  __device__ uint32_t empty(int s) const { return full(s) + 8; }
};

/// One thread fills the ring with steps [k0, k0 + steps) of a slab. `made` counts fills since the kernel began.
__device__ void fill(const NarrowParams& p, const Ring& ring, int slab, int k0, int steps, int made) {
  const NarrowShape& shape = p.shape;
  auto weights = [&](int s, int k) {
    barrier_expect(ring.full(s), static_cast<uint32_t>(ring.bytes));
    for (int b = 0; b < shape.boxes; ++b)
      copy_box(ring.weight(s) + static_cast<uint32_t>(b * shape.box_rows * 128), &p.weight, (k0 + k) * kDepth,
               slab * shape.rows + b * shape.box_rows, ring.full(s));
  };
  auto tokens = [&](int s, int k) { copy_box(ring.x(s), &p.x, (k0 + k) * kDepth, 0, ring.full(s)); };
  int k = 0;
  if (made == 0) {  // weights are constant: they travel while the kernel ahead ends
    const int ahead = min(ring.stages, steps);
    for (; k < ahead; ++k) weights(k, k);
    wait_for_previous();
    for (int i = 0; i < ahead; ++i) tokens(i, i);
  }
  for (; k < steps; ++k) {
    const int fill = made + k, s = fill % ring.stages;
    barrier_wait(ring.empty(s), static_cast<uint32_t>(fill / ring.stages & 1) ^ 1u);
    weights(s, k);
    tokens(s, k);
  }
}

template <class T, int kN, int kTiles>
__device__ __forceinline__ void multiply(const Ring& ring, int steps, int made, float (&d)[kTiles][kN / 2]) {
  const int group = threadIdx.x / 128;
  int before = 0;
  for (int k = 0; k < steps; ++k) {
    const int fill = made + k, s = fill % ring.stages;
    barrier_wait(ring.full(s), static_cast<uint32_t>(fill / ring.stages & 1));
    const uint64_t b = operand(ring.x(s));
    wgmma_fence();
    // Rows past the slab multiply whatever lies there; nobody looks at them.
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint64_t a = operand(ring.weight(s) + static_cast<uint32_t>((2 * t + group) * 64 * 128));
#pragma unroll
      for (int i = 0; i < kDepth / 16; ++i) wgmma<T, kN>(d[t], a + 2 * i, b + 2 * i, (k | i) != 0);
    }
    wgmma_commit();
    wgmma_wait<1>();  // the step before has been read
    if (k > 0 && threadIdx.x % 128 == 0) barrier_arrive(ring.empty(before));
    before = s;
  }
  wgmma_wait<0>();
  if (threadIdx.x % 128 == 0) barrier_arrive(ring.empty(before));
}

/// Sums to shared memory as [token][row].
template <int kN, int kTiles>
__device__ __forceinline__ void lay_out(const NarrowShape& shape, float* sums, const float (&d)[kTiles][kN / 2]) {
  const int lane = threadIdx.x % 32, q = lane % 4;
  const int row0 = threadIdx.x / 128 * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row0 + t * 128 + 8 * h;
      if (row >= shape.rows) continue;
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) sums[(8 * j + 2 * q + odd) * shape.sum_stride + row] = d[t][4 * j + 2 * h + odd];
    }
}

/// This block's share of the slab's columns to their places: a thread takes kPairs times two neighbours, and reads all
/// that it needs for them before it writes, so that their latencies overlap.
__device__ __forceinline__ void finish_slab(const NarrowParams& p, int slab, int rank, uint32_t sums) {
  constexpr int kPairs = 2;
  const NarrowShape& shape = p.shape;
  const EpilogueParams& e = p.g.end;
  const int columns = p.g.gated ? shape.rows / 2 : shape.rows, pairs = columns / shape.cluster / 2;
  const int64_t first = static_cast<int64_t>(slab) * columns;
  const int items = static_cast<int>(p.g.m) * pairs;
  auto sum_of = [&](int token, int row) {
    const uint32_t at = sums + static_cast<uint32_t>(token * shape.sum_stride + row) * 4;
    float2 sum = load_of_rank(at, 0);
    for (int r = 1; r < shape.cluster; ++r) {
      const float2 v = load_of_rank(at, r);
      sum = make_float2(sum.x + v.x, sum.y + v.y);
    }
    return sum;
  };
  for (int begin = threadIdx.x; begin < items; begin += kPairs * kThreads) {
    int token[kPairs], at[kPairs];
    float2 sum[kPairs], other[kPairs];  // residual or ups
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int item = begin + i * kThreads;
      token[i] = item / pairs;
      at[i] = item < items ? (rank * pairs + item % pairs) * 2 : columns;
      other[i] = make_float2(0, 0);
      if (at[i] >= columns || first + at[i] >= e.columns) continue;
      if (p.g.gated) {
        const int row = at[i] / 8 * 16 + at[i] % 8;
        sum[i] = sum_of(token[i], row);
        other[i] = sum_of(token[i], row + 8);
      } else {
        if (e.residual.data) other[i] = load_pair(e.residual, token[i], first + at[i], e.columns);
        sum[i] = sum_of(token[i], at[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int64_t column = first + at[i];
      if (at[i] >= columns || column >= e.columns) continue;
      if (p.g.gated) {
        finish_gated(e, token[i], column, sum[i], other[i]);
        continue;
      }
      const float2 bias = e.bias ? constant_pair(e.bias, column, e.columns) : make_float2(0, 0);
      const float2 scale = e.scale ? constant_pair(e.scale, column, e.columns) : make_float2(1, 1);
      float2 v = make_float2(sum[i].x + bias.x, sum[i].y + bias.y);
      if (p.g.gelu) v = make_float2(fast_gelu(v.x), fast_gelu(v.y));
      store_pair(e.out, token[i], column, e.columns, fmaf(v.x, scale.x, other[i].x), fmaf(v.y, scale.y, other[i].y));
    }
  }
}

#endif

template <class T, int kN, int kTiles>
__global__ __launch_bounds__(kThreads, kN * kTiles <= 128 ? 2 : 1) void narrow_kernel(const __grid_constant__ NarrowParams p) {
#ifdef TESSERA_WGMMA_HERE
  extern __shared__ unsigned char raw[];
  let_next_start();
  const NarrowShape& shape = p.shape;
  const uint32_t base = (shared_address(raw) + 1023u) & ~1023u;
  const Ring ring{.barriers = base, .first = base + kBarrierBytes, .stages = shape.stages, .x_bytes = kN * 128,
                  .bytes = kN * 128 + shape.rows * 128};
  // The sums take the ring's place when it has been read.
  float* sums = reinterpret_cast<float*>(raw + (ring.first - shared_address(raw)));
  if (threadIdx.x == 0) {
    for (int s = 0; s < ring.stages; ++s) {
      barrier_init(ring.full(s), 1);
      barrier_init(ring.empty(s), 2);
    }
    barrier_publish();
  }
  __syncthreads();
  const int rank = static_cast<int>(blockIdx.x) % shape.cluster, all = static_cast<int>((p.g.k + kDepth - 1) / kDepth);
  const int k0 = all * rank / shape.cluster, steps = all * (rank + 1) / shape.cluster - k0;
  const bool consumes = threadIdx.x < kConsumers;
  int made = 0;
  for (int slab = static_cast<int>(blockIdx.x) / shape.cluster; slab < shape.slabs;
       slab += static_cast<int>(gridDim.x) / shape.cluster) {
    if (consumes) {
      float d[kTiles][kN / 2];
      multiply<T, kN, kTiles>(ring, steps, made, d);
      asm volatile("bar.sync 1, 256;" ::: "memory");  // both groups have read the last of the ring
      lay_out<kN, kTiles>(shape, sums, d);
    } else if (threadIdx.x == kConsumers) {
      fill(p, ring, slab, k0, steps, made);
    }
    if (made == 0) wait_for_previous();
    made += steps;
    __syncthreads();
    if (shape.cluster > 1) cluster_barrier();
    finish_slab(p, slab, rank, ring.first);
    // Sums are read before anybody fills the ring again or leaves.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (shape.cluster > 1) cluster_barrier();
  }
#endif
}

template <class T, int kN, int kTiles>
void run(Stream& stream, const NarrowParams& p) {
  const Grid grid{static_cast<unsigned>(p.shape.blocks)};
  launch_fast(stream, "narrow_linear", grid, kThreads, static_cast<size_t>(p.shape.shared_bytes), narrow_kernel<T, kN, kTiles>, p,
              {.overlap = true, .cluster = static_cast<unsigned>(p.shape.cluster)});
}

template <class T, int kN>
void with_columns(Stream& stream, const NarrowParams& p) {
  if (p.shape.rows <= 128) return run<T, kN, 1>(stream, p);
  if (p.shape.rows <= 256) return run<T, kN, 2>(stream, p);
  run<T, kN, 3>(stream, p);
}

NarrowShape shape_of(Stream& stream, const GemmParams& g) {
  return narrow_shape(g.m, g.packed_rows, g.k, cuda_stream(stream).device.limits.multiprocessors, g.gated);
}

}  // namespace

bool narrow_serves(Stream& stream, const GemmParams& g) {
  if (g.m > kNarrowRows) return false;
  const NarrowShape shape = shape_of(stream, g);
  return shape.slabs * shape.cluster == shape.blocks;
}

void narrow_linear(Stream& stream, DType dtype, const GemmParams& g) {
  const NarrowShape shape = shape_of(stream, g);
  TESSERA_CHECK(shape.shared_bytes <= shared_bytes::kNarrow, "narrow_linear: " + std::to_string(shape.shared_bytes) + " bytes");
  NarrowParams p{.x = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, shape.columns),
                 .weight = tensor_map(dtype, g.weight, g.packed_rows, g.k, g.weight_stride, shape.box_rows),
                 .g = g,
                 .shape = shape};
  dispatch_half(dtype, "linear", [&](auto zero) {
    using T = decltype(zero);
    switch (shape.columns) {
      case 16: return with_columns<T, 16>(stream, p);
      case 32: return with_columns<T, 32>(stream, p);
      default: return with_columns<T, 64>(stream, p);
    }
  });
}

}  // namespace tessera::cuda
