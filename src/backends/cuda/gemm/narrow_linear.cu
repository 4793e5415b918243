#include <algorithm>

#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/gemm/narrow_choice.cuh"
#include "backends/cuda/gemm/narrow_sent.cuh"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/narrow_shape.h"

namespace tessera::cuda {
namespace {

// More rows than a dot product serves, too few to fill a tile of the dense kernels: the weight's rows are wgmma's 64 rows,
// the tokens its columns. What counts is the stream of the weight: a block takes a slab of its rows, as many as give every
// multiprocessor the same (narrow_shape.h), and reads x once for all of them. Where slabs are few a cluster shares K, and
// its blocks send each other their sums (narrow_sent.cuh); where they are many a block takes several, and its ring does not
// pause between them.
constexpr int kThreads = kNarrowConsumers + 32;
constexpr int kDepth = 64;  ///< a swizzled row of 128 bytes
// The first page of a block's shared memory: barriers, the tokens' factors, biases and the next norm's weights (SentSums).
constexpr int kPageBytes = 1024, kFactors = 256, kVectors = 512;
constexpr int kMostPlaces = (kPageBytes - kVectors) / 64;

#ifdef TESSERA_WGMMA_HERE

/// The block's way through shared memory, the same for both sides of the rings: of the weight's steps and, in no more stages, of x's.
struct Ring {
  uint32_t barriers, first;
  int stages, x_stages, x_bytes, weight_bytes;
  __device__ uint32_t x(int s) const { return first + static_cast<uint32_t>(s * x_bytes); }
  __device__ uint32_t weight(int s) const { return x(x_stages) + static_cast<uint32_t>(s * weight_bytes); }
  __device__ uint32_t full(int s) const { return barriers + static_cast<uint32_t>(s) * 16; }
  __device__ uint32_t empty(int s) const { return full(s) + 8; }
  __device__ uint32_t end() const { return weight(stages); }
};

/// A block's share of the product.
struct Share {
  int first_slab, apart, rank;  ///< slabs first_slab, first_slab + apart, ...; place in the cluster
  int k0, steps;                ///< of K
};

__device__ Share share_of(const NarrowParams& p) {
  const int cluster = p.shape.cluster, rank = static_cast<int>(blockIdx.x) % cluster,
            all = static_cast<int>((p.g.k + kDepth - 1) / kDepth);
  Share s{.first_slab = static_cast<int>(blockIdx.x) / cluster,
          .apart = static_cast<int>(gridDim.x) / cluster,
          .rank = rank,
          .k0 = all * rank / cluster};
  s.steps = all * (rank + 1) / cluster - s.k0;
  return s;
}

/// One thread fills the rings with the block's share of K of each of its slabs. `bring` brings what the ends need, see SentSums.
template <class Bring>
__device__ void fill(const NarrowParams& p, const Ring& ring, const Share& share, Bring bring) {
  const NarrowShape& shape = p.shape;
  auto weights = [&](int s, int slab, int k) {
    barrier_expect(ring.full(s), static_cast<uint32_t>(ring.x_bytes + ring.weight_bytes));
    for (int b = 0; b < shape.boxes; ++b)
      copy_box(ring.weight(s) + static_cast<uint32_t>(b * shape.box_rows * 128), &p.weight, (share.k0 + k) * kDepth,
               slab * shape.rows + b * shape.box_rows, ring.full(s));
  };
  auto tokens = [&](int s, int x_stage, int k) { copy_box(ring.x(x_stage), &p.x, (share.k0 + k) * kDepth, 0, ring.full(s)); };
  prefetch_map(&p.x);
  // Weights are constant: they travel while the kernel ahead ends.
  const int ahead = min(ring.stages, share.steps), x_ahead = min(ring.x_stages, share.steps);
  for (int k = 0; k < ahead; ++k) weights(k, share.first_slab, k);
  bring(/*late=*/false);
  wait_for_previous();
  for (int k = 0; k < x_ahead; ++k) tokens(k, k, k);
  bring(/*late=*/true);
  // Where a step has been read, its weight makes way for that `stages` steps later and its x for that `x_stages` later.
  int s = 0, x_stage = 0, slab = share.first_slab, weight_k = ahead, k = x_ahead;
  uint32_t parity = 0;  // of the stage's last reading
  for (int x_slab = share.first_slab; x_slab < shape.slabs; x_slab += share.apart, k = 0)
    for (; k < share.steps; ++k) {
      if (weight_k == share.steps) {
        weight_k = 0;
        slab += share.apart;
      }
      barrier_wait(ring.empty(s), parity);
      const int x_step = s + ring.x_stages;
      if (slab < shape.slabs) weights(s, slab, weight_k++);
      tokens(x_step < ring.stages ? x_step : x_step - ring.stages, x_stage, k);
      if (++x_stage == ring.x_stages) x_stage = 0;
      if (++s == ring.stages) {
        s = 0;
        parity ^= 1;
      }
    }
}

/// The reading side's place in the rings.
struct Place {
  int stage = 0, x_stage = 0;
  uint32_t parity = 0;
};

/// Registers with whatever is in them. (Sums that other code had a hand in, even by a branch around the product, make the
/// assembler wait after each wgmma.)
template <int kTiles, int kCount>
__device__ __forceinline__ void take_as_they_are(float (&d)[kTiles][kCount]) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "=f"(d[t][i]));
}

template <class T, int kN, int kTiles>
__device__ __forceinline__ void multiply(const Ring& ring, int group, int steps, Place& place,
                                         float (&d)[kTiles][kN / 2]) {
  int before = 0;
  for (int k = 0; k < steps; ++k) {
    const int s = place.stage;
    barrier_wait(ring.full(s), place.parity);
    const uint64_t b = operand(ring.x(place.x_stage));
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
    if (++place.x_stage == ring.x_stages) place.x_stage = 0;
    if (++place.stage == ring.stages) {
      place.stage = 0;
      place.parity ^= 1;
    }
  }
  wgmma_wait<0>();
  if (threadIdx.x % 128 == 0) barrier_arrive(ring.empty(before));
#pragma unroll
  for (int t = 0; t < kTiles; ++t) wgmma_arrived(d[t]);
}

/// Where a block's things lie in shared memory, and its barriers behind those of the ring.
struct Block {
  Ring ring;
  uint32_t beside, factors, vectors;
  __device__ uint32_t all_sent() const { return ring.full(ring.stages); }
  __device__ uint32_t all_brought() const { return ring.empty(ring.stages); }
};

template <int kN>
__device__ __forceinline__ Block lay_out(const NarrowShape& shape, uint32_t base) {
  const uint32_t beside = base + kPageBytes;
  return {.ring = {.barriers = base,
                   .first = beside + static_cast<uint32_t>(shape.beside_bytes),
                   .stages = shape.stages,
                   .x_stages = shape.x_stages,
                   .x_bytes = kN * 128,
                   .weight_bytes = shape.rows * 128},
          .beside = beside,
          .factors = base + kFactors,
          .vectors = base + kVectors};
}

__device__ __forceinline__ void init_barriers(const Block& block, const NarrowShape& shape) {
  for (int s = 0; s < shape.stages; ++s) {
    barrier_init(block.ring.full(s), 1);
    barrier_init(block.ring.empty(s), 2);
  }
  barrier_init(block.all_sent(), 1);
  barrier_init(block.all_brought(), 1);
  barrier_publish();
}

/// Consumers of a block whose cluster shares K: one slab, whose sums meet in shared memory.
template <class T, int kN, int kTiles>
__device__ __forceinline__ void take_part(const NarrowParams& p, const Block& block, const Share& share, int group,
                                          const SentSums<T, kN>& sent) {
  TokenFactors<kN> token_factors(p.g);
  Place place;
  const int slot = sent.slot();
  const auto routes = sent.template routes<kTiles>(block.all_sent());
#pragma unroll 1
  for (int real = p.first_run; real < 2; ++real) {
    if (real) {
      wait_for_previous();
      token_factors.load();
      float d[kTiles][kN / 2];
      take_as_they_are(d);
      multiply<T, kN, kTiles>(block.ring, group, share.steps, place, d);
      if (!p.shape.sums_apart) {
        named_barrier_sync(1, kNarrowConsumers);  // both groups have read the last of the ring
        cluster_arrive();
      }
      cluster_wait();
      sent.send(routes, d);
      token_factors.leave(block.factors);
      named_barrier_sync(1, kNarrowConsumers);
      barrier_wait(block.all_sent(), 0);
      barrier_wait(block.all_brought(), 0);
    }
    sent.finish(real ? slot : 0, real);
  }
}

/// Consumers of a block that has all of K: one slab after another.
template <class T, int kN, int kTiles>
__device__ __forceinline__ void take_slabs(const NarrowParams& p, const Block& block, const Share& share, int group) {
  TokenFactors<kN> token_factors(p.g);
  Place place;
#pragma unroll 1
  for (int slab = share.first_slab - (p.first_run ? 0 : share.apart); slab < p.shape.slabs; slab += share.apart) {
    const bool real = slab >= share.first_slab;  // before them a rehearsal
    float d[kTiles][kN / 2];
    take_as_they_are(d);
    if (slab == share.first_slab) {
      wait_for_previous();
      token_factors.load();
      token_factors.leave(block.factors);  // beside the slabs' sums there is no room to hold them
    }
    if (real) multiply<T, kN, kTiles>(block.ring, group, share.steps, place, d);
    if (slab == share.first_slab) named_barrier_sync(1, kNarrowConsumers);
    if (p.g.gated)
      finish_gated<T, kN, kTiles>(p, max(slab, share.first_slab), block.ring.end(), block.factors, d, real);
    else if (real)
      finish_own<T, kN, kTiles>(p, slab, block.factors, d);
  }
}

/// Consumers of a block whose slabs' sums only choices are made of.
template <class T, int kN>
__device__ __forceinline__ void choose(const NarrowParams& p, const Block& block, const Share& share, int group) {
  TokenFactors<kN> token_factors(p.g);
  ThreadChoices<kN> choices;
  Place place;
  wait_for_previous();
  token_factors.load();
  token_factors.leave(block.factors);
  named_barrier_sync(1, kNarrowConsumers);
#pragma unroll 1
  for (int slab = share.first_slab; slab < p.shape.slabs; slab += share.apart) {
    float d[1][kN / 2];
    take_as_they_are(d);
    multiply<T, kN, 1>(block.ring, group, share.steps, place, d);
    choices.take(p, slab, block.factors, d[0]);
  }
  choices.leave(p, block.ring.first);
}

#endif

/// A kernel of its own: choices take registers that others' second block needs.
template <class T, int kN>
__global__ __launch_bounds__(kThreads, 1) void narrow_choice_kernel(const __grid_constant__ NarrowParams p) {
#ifdef TESSERA_WGMMA_HERE
  extern __shared__ unsigned char raw[];
  let_next_start();
  const Block block = lay_out<kN>(p.shape, (shared_address(raw) + 1023u) & ~1023u);
  if (threadIdx.x == 0) init_barriers(block, p.shape);
  __syncthreads();
  const Share share = share_of(p);
  if (threadIdx.x >= kNarrowConsumers) {
    if (threadIdx.x == kNarrowConsumers) fill(p, block.ring, share, [](bool) {});
    return;
  }
  choose<T, kN>(p, block, share, __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0));
#endif
}

template <class T, int kN, int kTiles>
__global__ __launch_bounds__(kThreads,
                             kN* kTiles <= 64 ? 2 : 1) void narrow_kernel(const __grid_constant__ NarrowParams p) {
#ifdef TESSERA_WGMMA_HERE
  extern __shared__ unsigned char raw[];
  let_next_start();
  const NarrowShape& shape = p.shape;
  const Block block = lay_out<kN>(shape, (shared_address(raw) + 1023u) & ~1023u);
  const Share share = share_of(p);
  const SentSums<T, kN> sent(p, share.first_slab, share.rank,
                             {.sums = shape.sums_apart ? block.ring.end() : block.ring.first,
                              .beside = block.beside,
                              .vectors = block.vectors,
                              .factors = block.factors});
  if (threadIdx.x == 0) {
    init_barriers(block, shape);
    if (shape.sends) barrier_expect(block.all_sent(), sent.expected());
  }
  __syncthreads();
  // Before anybody sends, all of the cluster must run, or have read their rings where sums take their place.
  if (shape.sends && shape.sums_apart) cluster_arrive();
  if (threadIdx.x >= kNarrowConsumers) {
    if (threadIdx.x == kNarrowConsumers)
      fill(p, block.ring, share, [&](bool late) { sent.bring(block.all_brought(), late); });
    return;
  }
  const int group =
      __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);  // the compiler must know that it is uniform
  if (shape.sends)
    take_part<T, kN, kTiles>(p, block, share, group, sent);
  else
    take_slabs<T, kN, kTiles>(p, block, share, group);
#endif
}

void run(Stream& stream, const NarrowParams& p, void (*kernel)(NarrowParams)) {
  const Grid grid{static_cast<unsigned>(p.shape.blocks)};
  launch_fast(stream, "narrow_linear", grid, kThreads, static_cast<size_t>(p.shape.shared_bytes), kernel, p,
              {.overlap = true, .cluster = static_cast<unsigned>(p.shape.cluster)});
}

template <class T, int kN>
void with_columns(Stream& stream, const NarrowParams& p) {
  if (p.g.choices.found) return run(stream, p, narrow_choice_kernel<T, kN>);
  if (p.shape.rows <= 128) return run(stream, p, narrow_kernel<T, kN, 1>);
  if (p.shape.rows <= 256) return run(stream, p, narrow_kernel<T, kN, 2>);
  run(stream, p, narrow_kernel<T, kN, 3>);
}

/// Whether bulk copies can bring what the sums meet at their end.
bool ends_ahead(const GemmParams& g, const RotaryParams& rotary, const NarrowShape& shape) {
  auto aligned = [](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 4 == 0;
  };
  const plain::Elements& residual = g.end.residual;
  const int64_t places = shape.sends ? shape.sent_bytes / shape.cluster / (8 * sent_row_bytes(shape.columns)) : kMostPlaces + 1;
  return places <= kMostPlaces && g.end.columns % 8 == 0 && aligned(g.end.bias, 0) && aligned(g.behind.weight, 0) &&
         aligned(rotary.cos_sin, rotary.cos_sin_stride) &&
         (!residual.data || (!rotary.half && residual.dtype == DType::kF32 && aligned(residual.data, residual.stride)));
}

void launch_narrow(Stream& stream, DType dtype, const GemmParams& g, const RotaryParams& rotary,
                   const NarrowShape& shape) {
  TESSERA_CHECK(shape.shared_bytes <= shared_bytes::kNarrow, "narrow_linear: " + std::to_string(shape.shared_bytes) + " bytes");
  NarrowParams p{.x = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, shape.columns),
                 .weight = tensor_map(dtype, g.weight, g.packed_rows, g.k, g.weight_stride, shape.box_rows),
                 .ends_ahead = ends_ahead(g, rotary, shape),
                 .first_run = first_run(),
                 .g = g,
                 .rotary = rotary,
                 .shape = shape};
  if (p.ends_ahead && rotary.half)
    p.beside = float_map(rotary.cos_sin, g.m, 2 * rotary.half, rotary.cos_sin_stride, 8, shape.columns);
  else if (p.ends_ahead && g.end.residual.data)
    p.beside = float_map(static_cast<const float*>(g.end.residual.data), g.m, g.end.columns, g.end.residual.stride, 8,
                         shape.columns);
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

LeftParts narrow_linear(Stream& stream, DType dtype, const GemmParams& params) {
  GemmParams g = params;
  const NarrowShape shape = narrow_shape(g.m, g.packed_rows, g.k, cuda_stream(stream).device.limits.multiprocessors,
                                         g.gated ? NarrowEnd::kGated : NarrowEnd::kPlain);
  const int64_t parts = g.behind.weight && shape.sends ? shape.blocks * parts_of_block(shape.columns) : 0;
  if (parts == 0 || parts % 4 != 0 || parts * g.m > g.behind.room) g.behind = {};
  const EpilogueParams& e = g.end;
  const bool sums_alone = !e.bias && !e.scale && !e.residual.data && !g.gated && !g.gelu;
  if (!sums_alone || shape.sends || shape.rows > 128 || shape.blocks * g.m > g.choices.room) g.choices = {};
  launch_narrow(stream, dtype, g, {}, shape);
  return {.squares = g.behind.weight ? parts : 0, .choices = g.choices.found ? shape.blocks : 0};
}

bool narrow_rotated(Stream& stream, DType dtype, const GemmParams& g, const RotaryParams& rotary) {
  const auto shape = narrow_heads_shape(g.m, rotary.heads + 2 * rotary.kv_heads, 2 * rotary.half, g.k,
                                        cuda_stream(stream).device.limits.multiprocessors);
  if (shape) launch_narrow(stream, dtype, g, rotary, *shape);
  return shape.has_value();
}

}  // namespace tessera::cuda
