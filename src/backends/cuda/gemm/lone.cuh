#pragma once

// What the kernels share whose tiles all run at once, one a block (lone_tiles.h). Nothing hides the start and the end of such a tile, and its
// code is cold when it runs: both are short. Rows that whole blocks leave over (a vision tile has 1025) ride along: several blocks of rows
// multiply them with some columns of their weight's tiles each, in warps beside, by ordinary instructions. Small mma would wait behind wgmma.

#include "backends/cuda/gemm/tile_end.cuh"
#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/lone_tiles.h"
#include "backends/cuda_choice/wgmma_rounds.h"

namespace tessera::cuda {

inline constexpr int kRiderBytes = 8 * static_cast<int>(kWgmmaDepth) * 2;  ///< of x, a stage: eight rows, what one swizzle takes
inline constexpr int kRiderWarps = 3;  ///< take turns at the steps of K, each of which takes one longer than the product does

/// First threads of a block: two warpgroups multiply, then a warp brings, others are for riders.
inline constexpr int kLoneBringer = 256, kLoneRider = 288, kLoneThreads = kLoneRider + 32 * kRiderWarps;

/// A kernel's tile and its ring of stages of kDepth of K: rows of x, then of the weight. A step is read by kReaders warpgroups. kEndBytes: what the
/// end needs of shared memory. kDealt: the weight's map is a dealt_map of runs of 8.
template <const LoneShape& kShape, int kStageCount, int kStepReaders, int kForEnd, bool kMapIsDealt>
struct LoneTile {
  static constexpr int kRows = static_cast<int>(kShape.rows), kColumns = static_cast<int>(kShape.columns);
  static constexpr int kDepth = static_cast<int>(kWgmmaDepth);  ///< a swizzled row of 128 bytes
  static constexpr int kCluster = static_cast<int>(kLoneCluster), kShare = kColumns / kCluster;  ///< of the weight's rows, a block's to bring
  static constexpr int kCarriers = static_cast<int>(kShape.carriers), kRiderColumns = kColumns / kCarriers;
  static constexpr int kStages = kStageCount, kReaders = kStepReaders, kEndBytes = kForEnd;
  static constexpr bool kDealt = kMapIsDealt;
  static constexpr int kXBytes = kRows * kDepth * 2, kStageBytes = kXBytes + kColumns * kDepth * 2;
  static constexpr int kRoom = kRiderWarps * static_cast<int>(kMostRiders) * kRiderColumns * 4;  ///< where riders' warps meet
  static constexpr int kBytes = kStages * (kStageBytes + kRiderBytes + 16) + kEndBytes + kRoom + 1024;  ///< with barriers and alignment
  static_assert(kBytes <= shared_bytes::kWgmmaLinear);
};

struct LoneParams {
  CUtensorMap x, weight, riders;  ///< boxes of a block's rows, of its share of the weight's, of eight rows of x
  GemmParams g;
  int riders_there, rider_row;  ///< how many, the first of them
  float2* parts;                ///< lone_stream's: sums of parts of the riders' rows, [kMostRiders][columns / kRiderColumns]
  unsigned* arrived;            ///< [columns / 64], zero between launches
};

template <class Tile>
LoneParams lone_params(DType dtype, const GemmParams& g, const LoneTiles& tiles) {
  return {.x = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, Tile::kRows),
          .weight = Tile::kDealt ? dealt_map(dtype, g.weight, g.packed_rows, g.k, g.weight_stride, Tile::kShare, 8)
                                 : tensor_map(dtype, g.weight, g.packed_rows, g.k, g.weight_stride, Tile::kShare),
          .riders = tensor_map(dtype, g.x, g.m, g.k, g.x_stride, kRiderBytes / (Tile::kDepth * 2)),
          .g = g,
          .riders_there = static_cast<int>(tiles.riders),
          .rider_row = static_cast<int>(g.m - tiles.riders)};
}

template <class Tile>
void launch_lone(Stream& stream, const char* name, const LoneTiles& tiles, void (*kernel)(LoneParams), const LoneParams& p) {
  const Grid grid{static_cast<unsigned>(tiles.pairs * kLoneCluster), static_cast<unsigned>(tiles.columns)};
  launch_fast(stream, name, grid, kLoneThreads, Tile::kBytes, kernel, p, {.overlap = true, .cluster = Tile::kCluster});
}

#ifdef TESSERA_WGMMA_HERE

template <class Tile>
struct LoneRing {
  uint32_t base;
  __device__ __forceinline__ explicit LoneRing(const void* raw) : base((shared_address(raw) + 1023u) & ~1023u) {}
  __device__ __forceinline__ uint32_t x(uint32_t s) const { return base + s * Tile::kStageBytes; }
  __device__ __forceinline__ uint32_t weight(uint32_t s) const { return x(s) + Tile::kXBytes; }
  __device__ __forceinline__ uint32_t riders(uint32_t s) const { return x(Tile::kStages) + s * kRiderBytes; }
  __device__ __forceinline__ uint32_t end() const { return riders(Tile::kStages); }
  __device__ __forceinline__ uint32_t full(uint32_t s) const { return end() + Tile::kEndBytes + s * 16; }
  __device__ __forceinline__ uint32_t empty(uint32_t s) const { return full(s) + 8; }
  __device__ __forceinline__ uint32_t room() const { return full(Tile::kStages); }
};

template <class Tile>
__device__ __forceinline__ bool carries(const LoneParams& p) { return blockIdx.x < Tile::kCarriers && p.riders_there > 0; }
template <class Tile>
__device__ __forceinline__ int first_column() { return static_cast<int>(blockIdx.y) * Tile::kColumns; }

template <class Tile>
struct LoneBringer {
  const LoneParams& p;
  const LoneRing<Tile>& ring;

  __device__ __forceinline__ void weight(int k, uint32_t stage) const {
    const uint32_t rank = blockIdx.x % Tile::kCluster, to = ring.weight(stage) + rank * (Tile::kShare * Tile::kDepth * 2), all = (1u << Tile::kCluster) - 1;
    const int row = first_column<Tile>() + static_cast<int>(rank) * Tile::kShare;
    barrier_expect(ring.full(stage), Tile::kStageBytes + (carries<Tile>(p) ? kRiderBytes : 0));
    if constexpr (Tile::kDealt)
      copy_dealt_to_cluster(to, &p.weight, k * Tile::kDepth, row / 32, ring.full(stage), all);
    else
      copy_box_to_cluster(to, &p.weight, k * Tile::kDepth, row, ring.full(stage), all);
  }
  __device__ __forceinline__ void x(int k, uint32_t stage) const {
    copy_box(ring.x(stage), &p.x, k * Tile::kDepth, static_cast<int>(blockIdx.x) * Tile::kRows, ring.full(stage));
  }
  __device__ __forceinline__ void riders(int k, uint32_t stage) const {
    if (carries<Tile>(p)) copy_box(ring.riders(stage), &p.riders, k * Tile::kDepth, p.rider_row, ring.full(stage));
  }

  /// Weights are constant: those of the first stages come while the kernel ahead ends. Other threads bring these stages' x, since a copy takes
  /// a thread 150 clocks.
  __device__ __forceinline__ void run(int steps) const {
#pragma unroll 1
    for (int k = 0; k < min(Tile::kStages, steps); ++k) weight(k, static_cast<uint32_t>(k));
    wait_for_previous();
    uint32_t stage = 0, phase = 0;
#pragma unroll 1
    for (int k = Tile::kStages; k < steps; ++k) {
      barrier_wait(ring.empty(stage), phase);
      weight(k, stage);
      x(k, stage);
      riders(k, stage);
      if (++stage == Tile::kStages) stage = 0, phase ^= 1;
    }
  }
  /// One thread each of the riders' first two warps, behind wait_for_previous(). Of 128 rows the first copy goes alone, or all would come late
  /// (fc1 15.3 to 15.0 us; with 64 rows the projection would take 7.8 for 7.3).
  __device__ __forceinline__ void first_rows(int steps, int warp) const {
    for (int k = 0; k < min(Tile::kStages, steps); ++k) {
      if (warp == 0 && k == 1 && Tile::kRows > 64) barrier_wait(ring.full(0), 0);
      if (warp == 0) x(k, static_cast<uint32_t>(k));
      if (warp == 1) riders(k, static_cast<uint32_t>(k));
    }
  }
};

/// Step k has been read here: tells the blocks that send to its stage. The last stages are not filled again, so that nobody arrives at
/// a block that has ended.
template <class Tile>
__device__ __forceinline__ void release(const LoneRing<Tile>& ring, int k, int steps, int thread) {
  if (k >= 0 && k < steps - Tile::kStages && thread < Tile::kCluster)
    barrier_arrive_at(ring.empty(static_cast<uint32_t>(k) % Tile::kStages), static_cast<uint32_t>(thread));
}

/// A whole block. `multiply(ring, steps, own)` is run by both warpgroups, `ride(ring, steps, warp)` by the riders' warps of blocks that carry some.
template <class Tile, class Multiply, class Ride>
__device__ __forceinline__ void run_lone(const LoneParams& p, const void* raw, const Multiply& multiply, const Ride& ride) {
  const LoneRing<Tile> ring(raw);
  const LoneBringer<Tile> bringer{p, ring};
  if (threadIdx.x == kLoneBringer) {
    prefetch_map(&p.weight);
    prefetch_map(&p.x);
    for (uint32_t s = 0; s < Tile::kStages; ++s) {
      barrier_init(ring.full(s), 1);
      barrier_init(ring.empty(s), (Tile::kReaders + (carries<Tile>(p) ? 1 : 0)) * Tile::kCluster);
    }
    barrier_publish();
  }
  cluster_sync();
  const int steps = static_cast<int>((p.g.k + Tile::kDepth - 1) / Tile::kDepth);
  // By a shuffle, so that the compiler knows that a warp agrees on it and keeps what follows in uniform registers.
  const int own = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  if (own < 2) {
    multiply(ring, steps, own);
  } else if (threadIdx.x >= kLoneRider) {
    const int warp = __shfl_sync(0xffffffffu, (static_cast<int>(threadIdx.x) - kLoneRider) / 32, 0);
    const bool speaks = threadIdx.x % 32 == 0;
    if (speaks && warp == 1) prefetch_map(&p.riders);
    wait_for_previous();
    if (speaks) bringer.first_rows(steps, warp);
    __syncwarp();
    if (carries<Tile>(p)) ride(ring, steps, warp);
  } else if (threadIdx.x == kLoneBringer) {
    bringer.run(steps);
  }
  let_next_start();
}

/// One of the riders' warps; several lanes share a column. Rows of 128 bytes are swizzled: 16 bytes at a row's place i lie at i ^ row % 8.
template <class T, class Tile>
class RiderSums {
 public:
  static constexpr int kColumns = Tile::kRiderColumns, kLanes = 32 / kColumns;  ///< of a column
  static constexpr int kMost = static_cast<int>(kMostRiders);
  __device__ __forceinline__ RiderSums(int riders, int warp) : riders_(riders), warp_(warp), lane_(static_cast<int>(threadIdx.x) % 32) {}

  /// This warp's steps of K, with those rows of the weight's tile that are the block's share.
  __device__ __forceinline__ void add_up(const LoneRing<Tile>& ring, int steps) {
#pragma unroll 1
    for (int k = warp_; k < steps; k += kRiderWarps) {
      const auto stage = static_cast<uint32_t>(k) % Tile::kStages;
      barrier_wait(ring.full(stage), static_cast<uint32_t>(k) / Tile::kStages % 2);
      add(ring.riders(stage), ring.weight(stage) + blockIdx.x * (kColumns * 128));
      __syncwarp();
      release(ring, k, steps, lane_);
    }
  }
  /// The sums of all warps; every lane of each gets those of its column.
  __device__ __forceinline__ void meet(const LoneRing<Tile>& ring, float (&whole)[kMost]) const {
    const auto place = [&](int warp, int r) { return ring.room() + ((warp * kMost + r) * kColumns + lane_ / kLanes) * 4; };
#pragma unroll
    for (int r = 0; r < kMost; ++r) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kChains; ++j) sum += sums_[r][j];
#pragma unroll
      for (int mask = 1; mask < kLanes; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
      if (lane_ % kLanes == 0) store_shared_float(place(warp_, r), sum);
    }
    named_barrier_sync(3, 32 * kRiderWarps);
#pragma unroll
    for (int r = 0; r < kMost; ++r) {
      whole[r] = 0;
#pragma unroll
      for (int w = 0; w < kRiderWarps; ++w) whole[r] += load_shared_float(place(w, r));
    }
  }

 private:
  static constexpr int kChunks = 8 / kLanes, kChains = 4;

  /// 64 of K. `weight`: the share's first row, a multiple of 8.
  __device__ __forceinline__ void add(uint32_t x, uint32_t weight) {
    const uint32_t row = weight + lane_ / kLanes * 128;
#pragma unroll
    for (int r = 0; r < kMost; ++r) {
      if (r >= riders_) break;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const int chunk = lane_ % kLanes * kChunks + i;
        float v[8], w[8];
        unpack8<T>(load_shared(x + r * 128 + (chunk ^ r) * 16), v);
        unpack8<T>(load_shared(row + (chunk ^ lane_ / kLanes % 8) * 16), w);
#pragma unroll
        for (int j = 0; j < 8; ++j) sums_[r][j % kChains] = fmaf(v[j], w[j], sums_[r][j % kChains]);
      }
    }
  }

  int riders_, warp_, lane_;
  float sums_[kMost][kChains] = {};
};

#endif

}  // namespace tessera::cuda
