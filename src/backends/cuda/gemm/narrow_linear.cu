#include <algorithm>

#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/gemm/narrow_end.cuh"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/narrow_shape.h"

namespace tessera::cuda {
namespace {

// More rows than a dot product serves, too few to fill a tile of the dense kernels: the weight's rows are wgmma's 64 rows,
// the tokens its columns. What counts is the stream of the weight: a block takes a slab of its rows, as many as give every
// multiprocessor the same (narrow_shape.h), and reads x once for all of them. Where slabs are few a cluster shares K, and
// its blocks send each other their sums (narrow_end.cuh); where they are many a block takes several, and its ring does not
// pause between them.
constexpr int kThreads = kNarrowConsumers + 32;
constexpr int kDepth = 64;  ///< a swizzled row of 128 bytes
constexpr int kBarrierBytes = 1024;
constexpr int kFactors = 512;  ///< of them: where the tokens' factors lie

#ifdef TESSERA_WGMMA_HERE

/// The block's way through shared memory, the same for both sides of the ring.
struct Ring {
  uint32_t barriers, first;
  int stages, x_bytes, bytes;
  __device__ uint32_t x(int s) const { return first + static_cast<uint32_t>(s * bytes); }
  __device__ uint32_t weight(int s) const { return x(s) + static_cast<uint32_t>(x_bytes); }
  __device__ uint32_t full(int s) const { return barriers + static_cast<uint32_t>(s) * 16; }
  __device__ uint32_t empty(int s) const { return full(s) + 8; }
  __device__ uint32_t end() const { return x(stages); }
};

/// One thread fills the ring with the block's share of K of each of its slabs.
template <class BringMore>
__device__ void fill(const NarrowParams& p, const Ring& ring, int first_slab, int slabs_apart, int k0, int steps, BringMore bring_more) {
  const NarrowShape& shape = p.shape;
  auto weights = [&](int s, int slab, int k) {
    barrier_expect(ring.full(s), static_cast<uint32_t>(ring.bytes));
    for (int b = 0; b < shape.boxes; ++b)
      copy_box(ring.weight(s) + static_cast<uint32_t>(b * shape.box_rows * 128), &p.weight, (k0 + k) * kDepth,
               slab * shape.rows + b * shape.box_rows, ring.full(s));
  };
  auto tokens = [&](int s, int k) { copy_box(ring.x(s), &p.x, (k0 + k) * kDepth, 0, ring.full(s)); };
  prefetch_map(&p.x);
  // Weights are constant: they travel while the kernel ahead ends.
  const int ahead = min(ring.stages, steps);
  for (int k = 0; k < ahead; ++k) weights(k, first_slab, k);
  wait_for_previous();
  for (int k = 0; k < ahead; ++k) tokens(k, k);
  bring_more();
  int s = ahead % ring.stages, k = ahead;
  uint32_t parity = ahead == ring.stages ? 0 : 1;  // of the stage's last reading
  for (int slab = first_slab; slab < shape.slabs; slab += slabs_apart, k = 0)
    for (; k < steps; ++k) {
      barrier_wait(ring.empty(s), parity);
      weights(s, slab, k);
      tokens(s, k);
      if (++s == ring.stages) {
        s = 0;
        parity ^= 1;
      }
    }
}

/// The reading side's place in the ring.
struct Place {
  int stage = 0;
  uint32_t parity = 0;
};

template <class T, int kN, int kTiles>
__device__ __forceinline__ void multiply(const Ring& ring, int group, int steps, Place& place,
                                         float (&d)[kTiles][kN / 2]) {
  int before = 0;
  for (int k = 0; k < steps; ++k) {
    const int s = place.stage;
    barrier_wait(ring.full(s), place.parity);
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
    if (++place.stage == ring.stages) place = {0, place.parity ^ 1u};
  }
  wgmma_wait<0>();
  if (threadIdx.x % 128 == 0) barrier_arrive(ring.empty(before));
#pragma unroll
  for (int t = 0; t < kTiles; ++t) wgmma_arrived(d[t]);
}

#endif

template <class T, int kN, int kTiles>
__global__ __launch_bounds__(kThreads,
                             kN* kTiles <= 64 ? 2 : 1) void narrow_kernel(const __grid_constant__ NarrowParams p) {
#ifdef TESSERA_WGMMA_HERE
  extern __shared__ unsigned char raw[];
  let_next_start();
  const NarrowShape& shape = p.shape;
  const uint32_t base = (shared_address(raw) + 1023u) & ~1023u;
  const uint32_t residual = base + kBarrierBytes;
  const Ring ring{.barriers = base, .first = residual + static_cast<uint32_t>(shape.residual_bytes), .stages = shape.stages,
                  .x_bytes = kN * 128, .bytes = kN * 128 + shape.rows * 128};
  const uint32_t all_sent = ring.full(ring.stages), residual_there = ring.empty(ring.stages);
  if (threadIdx.x == 0) {
    for (int s = 0; s < ring.stages; ++s) {
      barrier_init(ring.full(s), 1);
      barrier_init(ring.empty(s), 2);
    }
    barrier_init(all_sent, 1);
    barrier_init(residual_there, 1);
    barrier_publish();
    if (shape.sends) barrier_expect(all_sent, static_cast<uint32_t>(shape.sent_bytes / shape.cluster * (shape.cluster - 1)));
  }
  __syncthreads();
  // Before anybody sends, all of the cluster must run, or have read their rings where sums take their place.
  if (shape.sends && shape.sums_apart) cluster_arrive();
  const int rank = static_cast<int>(blockIdx.x) % shape.cluster, all = static_cast<int>((p.g.k + kDepth - 1) / kDepth);
  const int k0 = all * rank / shape.cluster, steps = all * (rank + 1) / shape.cluster - k0;
  const int first_slab = static_cast<int>(blockIdx.x) / shape.cluster,
            apart = static_cast<int>(gridDim.x) / shape.cluster;
  const uint32_t factors = base + kFactors;
  const uint32_t behind_sums = ring.first + static_cast<uint32_t>(shape.sent_bytes);
  const SentSums<T, kN> sent(p, first_slab, rank,
                             {.sums = ring.first, .room = shape.sums_apart ? max(ring.end(), behind_sums) : behind_sums,
                              .residual = residual, .factors = factors});
  if (threadIdx.x >= kNarrowConsumers) {
    if (threadIdx.x == kNarrowConsumers)
      fill(p, ring, first_slab, apart, k0, steps, [&] {
        if (p.residual_ahead) sent.bring_residual(residual_there);
      });
    __syncwarp();
    if (!shape.sends) return;
    if (!shape.sums_apart) cluster_arrive();
    cluster_wait();
    cluster_arrive();
    cluster_wait();
    return;
  }
  const int group =
      __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);  // the compiler must know that it is uniform
  Place place;
  float d[kTiles][kN / 2];
  if (shape.sends) {
#pragma unroll 1
    for (int real = kRehearsal; real < 2; ++real) {
      if (real) {
        wait_for_previous();
        prepare_factors<kN>(p.g, factors);
        multiply<T, kN, kTiles>(ring, group, steps, place, d);
        named_barrier_sync(1, kNarrowConsumers);  // both groups have read the last of the ring
        if (!shape.sums_apart) cluster_arrive();
        sent.template keep<kTiles>(d);
        shared_writes_done();
        cluster_wait();
        named_barrier_sync(1, kNarrowConsumers);
        const int receiver = static_cast<int>(threadIdx.x);
        if (receiver < shape.cluster && receiver != rank) sent.send(receiver, all_sent);
        barrier_wait(all_sent, 0);
        cluster_arrive();
        if (p.residual_ahead) barrier_wait(residual_there, 0);
      }
      sent.finish(real);
    }
    cluster_wait();  // nobody's sums go before all have got them
    return;
  }
  if (p.g.gated) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) d[t][i] = 0;
#pragma unroll 1
    for (int slab = first_slab - apart; slab < shape.slabs; slab += apart) {
      const bool real = slab >= first_slab;  // before them a rehearsal
      if (slab == first_slab) {
        wait_for_previous();
        prepare_factors<kN>(p.g, factors);
      }
      if (real) multiply<T, kN, kTiles>(ring, group, steps, place, d);
      finish_gated<T, kN, kTiles>(p, max(slab, first_slab), ring.end(), factors, d, real);
    }
    return;
  }
  wait_for_previous();
  prepare_factors<kN>(p.g, factors);
  named_barrier_sync(1, kNarrowConsumers);
  for (int slab = first_slab; slab < shape.slabs; slab += apart) {
    multiply<T, kN, kTiles>(ring, group, steps, place, d);
    if (p.g.ahead.squares) scale_sums<kN>(factors, d);
    finish_own<T, kN, kTiles>(p, slab, d);
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

void launch_narrow(Stream& stream, DType dtype, const GemmParams& g, const RotaryParams& rotary,
                   const NarrowShape& shape) {
  const plain::Elements& residual = g.end.residual;
  const bool ahead = shape.residual_bytes > 0 && residual.data && residual.dtype == DType::kF32 && residual.stride % 4 == 0 &&
                     reinterpret_cast<uintptr_t>(residual.data) % 16 == 0;
  TESSERA_CHECK(shape.shared_bytes <= shared_bytes::kNarrow, "narrow_linear: " + std::to_string(shape.shared_bytes) + " bytes");
  const NarrowParams p{.x = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, shape.columns),
                       .weight = tensor_map(dtype, g.weight, g.packed_rows, g.k, g.weight_stride, shape.box_rows),
                       .residual = ahead ? float_map(static_cast<const float*>(residual.data), g.m, g.end.columns, residual.stride, 8, shape.columns)
                                         : CUtensorMap{},
                       .residual_ahead = ahead,
                       .g = g,
                       .rotary = rotary,
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

}  // namespace

int64_t narrow_linear(Stream& stream, DType dtype, const GemmParams& params) {
  GemmParams g = params;
  const NarrowShape shape = narrow_shape(g.m, g.packed_rows, g.k, cuda_stream(stream).device.limits.multiprocessors,
                                         g.gated ? NarrowEnd::kGated : NarrowEnd::kPlain);
  const int64_t parts = g.behind.weight && shape.sends ? shape.blocks * parts_of_block(shape.columns) : 0;
  if (parts == 0 || (parts + 3) / 4 * 4 * g.m > g.behind.room) g.behind = {};
  launch_narrow(stream, dtype, g, {}, shape);
  return g.behind.weight ? parts : 0;
}

bool narrow_rotated(Stream& stream, DType dtype, const GemmParams& g, const RotaryParams& rotary) {
  const auto shape = narrow_heads_shape(g.m, rotary.heads + 2 * rotary.kv_heads, 2 * rotary.half, g.k,
                                        cuda_stream(stream).device.limits.multiprocessors);
  if (shape) launch_narrow(stream, dtype, g, rotary, *shape);
  return shape.has_value();
}

}  // namespace tessera::cuda
