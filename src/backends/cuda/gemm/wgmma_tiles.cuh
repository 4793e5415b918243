#pragma once

// What the warps of the persistent wgmma product (wgmma_linear.cu) share: the units of work of a block, its way through shared memory, and
// the thread that brings operands.

#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/gemm/split_sums.cuh"
#include "backends/cuda/gemm/tile_end.cuh"
#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/wgmma_rounds.h"

namespace tessera::cuda::tiles {

inline constexpr int kMultiplyWarps = 8;  ///< two warpgroups
inline constexpr int kRows = 128;
inline constexpr int kColumns = 256;
inline constexpr int kDepth = 64;  ///< a swizzled row of 128 bytes
static_assert(kDepth == kWgmmaDepth);
inline constexpr int kStages = 3;
inline constexpr int kXBytes = kRows * kDepth * 2;
inline constexpr int kStageBytes = kXBytes + kColumns * kDepth * 2;
using StagedTile = StagedRows<kRows, kColumns>;
using StagedSlice = StagedRows<16, kColumns / kSlices>;
inline constexpr int kFactorBytes = 3 * kRows * 4;  ///< of two whole tiles, and of a split one
inline constexpr int kBytes = kStages * kStageBytes + StagedTile::kBytes + kEndWarps * StagedSlice::kBytes + kFactorBytes + 1024 + 256;  ///< with alignment and barriers
static_assert(kBytes == shared_bytes::kWgmmaLinear);
inline constexpr int kGroupRows = 2048;  ///< rows of x that share a column of the weight while it is in L2

struct WgmmaParams {
  CUtensorMap x, x_half;  ///< boxes of 128 rows and of 64
  CUtensorMap weight;     ///< boxes of a block's share of the weight's rows
  GemmParams g;
  int tall, tiles_n, tiles;  ///< see WgmmaRounds
  int whole, parts;
  SplitSums split;
};

#ifdef TESSERA_WGMMA_HERE

/// What a block makes at a time: a tile, or steps [begin, end) of K of it.
struct Unit {
  int row, column;  ///< first row of x, first packed column
  bool wide;        ///< the neighbour has the same rows of x
  int begin, end;
  int split, part;  ///< number among the split tiles (-1: a whole tile), and which part
};

__device__ __forceinline__ int unit_count(const WgmmaParams& p) { return p.whole + (p.tiles - p.whole) * p.parts; }

/// Tiles go down the rows of a group first, then to the next column; wide ones come last.
template <int kCluster>
__device__ __forceinline__ Unit unit_at(const WgmmaParams& p, int index, int rank, int steps) {
  constexpr int kGroup = kGroupRows / (kRows * kCluster);
  Unit unit{.begin = 0, .end = steps, .split = -1, .part = 0};
  int tile = index;
  if (index >= p.whole) {
    unit.split = (index - p.whole) / p.parts;
    unit.part = (index - p.whole) % p.parts;
    tile = p.whole + unit.split;
    unit.begin = steps * unit.part / p.parts;
    unit.end = steps * (unit.part + 1) / p.parts;
  }
  const int tall = p.tall * p.tiles_n;
  unit.wide = kCluster > 1 && tile >= tall;
  if (unit.wide) {
    unit.row = p.tall * kCluster * kRows;
    unit.column = ((tile - tall) * kCluster + rank) * kColumns;
  } else {
    const int group = kGroup * p.tiles_n;
    const int first = tile / group * kGroup, rows = min(kGroup, p.tall - first), within = tile % group;
    unit.row = ((first + within % rows) * kCluster + rank) * kRows;
    unit.column = within / rows * kColumns;
  }
  return unit;
}

/// A cluster's units, in order: its part of a split tile, then whole tiles, `stride` apart. -1: none is left.
__device__ __forceinline__ int whole_unit(const WgmmaParams& p, int index) { return index < p.whole ? index : -1; }
__device__ __forceinline__ int first_unit(const WgmmaParams& p, int cluster) {
  return p.whole + cluster < unit_count(p) ? p.whole + cluster : whole_unit(p, cluster);
}
__device__ __forceinline__ int next_unit(const WgmmaParams& p, int unit, int cluster, int stride) {
  return whole_unit(p, unit >= p.whole ? cluster : unit + stride);
}

/// The addresses of a block's stages, of what passes between those who multiply and those who end, and of the barriers of both.
struct Ring {
  uint32_t base, staged0, barriers;
  __device__ __forceinline__ explicit Ring(const void* raw)
      : base((shared_address(raw) + 1023u) & ~1023u),
        staged0(base + kStages * kStageBytes),
        barriers(staged0 + StagedTile::kBytes + kEndWarps * StagedSlice::kBytes + kFactorBytes) {}
  __device__ __forceinline__ uint32_t x(int s) const { return base + static_cast<uint32_t>(s) * kStageBytes; }
  __device__ __forceinline__ uint32_t weight(int s) const { return x(s) + kXBytes; }
  __device__ __forceinline__ uint32_t full(int s) const { return barriers + static_cast<uint32_t>(s) * 16; }
  __device__ __forceinline__ uint32_t empty(int s) const { return full(s) + 8; }
  /// A finished tile on its way from those who multiply to those who end it.
  __device__ __forceinline__ StagedTile staged() const { return {staged0}; }
  __device__ __forceinline__ uint32_t staged_full() const { return full(kStages); }
  __device__ __forceinline__ uint32_t staged_free() const { return empty(kStages); }
  /// 16 rows of 64 columns of a split tile, a warp's own.
  __device__ __forceinline__ StagedSlice slice(int warp) const { return {staged0 + StagedTile::kBytes + static_cast<uint32_t>(warp) * StagedSlice::kBytes}; }
  /// 1 / deviation of a tile's rows of x: of whole ones in turns, 2: of the split one.
  __device__ __forceinline__ uint32_t factors(int i) const { return slice(kEndWarps).base + static_cast<uint32_t>(i) * (kRows * 4); }
  __device__ __forceinline__ uint32_t factors_full(int i) const { return full(kStages + 1 + i); }

  __device__ __forceinline__ void init(int readers) const {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(full(s), 1);
      barrier_init(empty(s), readers);
    }
    // Of each warp a lane says it.
    barrier_init(staged_full(), kMultiplyWarps);
    barrier_init(staged_free(), kEndWarps);
    for (int i = 0; i < 2; ++i) barrier_init(factors_full(i), kEndWarps * 32);
    barrier_publish();
  }
};

/// One thread a block: brings the operands of the block's units in, in order. What both blocks of a cluster need, each
/// brings half of, and the copy engine delivers it to both.
template <int kCluster>
struct Bringer {
  static constexpr int kShare = kColumns / kCluster;  ///< of the weight's rows, a copy
  static constexpr uint16_t kAll = (1u << kCluster) - 1;
  const WgmmaParams& p;
  const Ring& ring;
  int rank;

  __device__ __forceinline__ void weight(const Unit& unit, int k, int stage) const {
    if (kCluster == 1 || unit.wide) {
#pragma unroll
      for (int i = 0; i < kCluster; ++i)
        copy_box(ring.weight(stage) + i * kShare * kDepth * 2, &p.weight, k * kDepth, unit.column + i * kShare, ring.full(stage));
    } else {
      copy_box_to_cluster(ring.weight(stage) + static_cast<uint32_t>(rank) * (kShare * kDepth * 2), &p.weight, k * kDepth,
                          unit.column + rank * kShare, ring.full(stage), kAll);
    }
  }
  __device__ __forceinline__ void x(const Unit& unit, int k, int stage) const {
    if (kCluster > 1 && unit.wide)
      copy_box_to_cluster(ring.x(stage) + static_cast<uint32_t>(rank) * (kXBytes / kCluster), &p.x_half, k * kDepth,
                          unit.row + rank * (kRows / kCluster), ring.full(stage), kAll);
    else
      copy_box(ring.x(stage), &p.x, k * kDepth, unit.row, ring.full(stage));
  }

  __device__ __forceinline__ void run(int steps, int cluster, int stride) const {
    const int first = first_unit(p, cluster);
    // Weights are constant: those of the first stages come while the kernel ahead ends.
    int ahead = 0;
    if (first >= 0) {
      const Unit unit = unit_at<kCluster>(p, first, rank, steps);
      for (; ahead < min(kStages, unit.end - unit.begin); ++ahead) {
        barrier_expect(ring.full(ahead), kStageBytes);
        weight(unit, unit.begin + ahead, ahead);
      }
    }
    prefetch_map(&p.x);
    wait_for_previous();
    int stage = 0;
    uint32_t phase = 0;
    for (int u = first; u >= 0; u = next_unit(p, u, cluster, stride)) {
      const Unit unit = unit_at<kCluster>(p, u, rank, steps);
      for (int k = unit.begin; k < unit.end; ++k, --ahead) {
        if (ahead <= 0) {
          barrier_wait(ring.empty(stage), phase ^ 1);  // by the consumers of all blocks that this one writes to
          barrier_expect(ring.full(stage), kStageBytes);
          weight(unit, k, stage);
        }
        x(unit, k, stage);
        if (++stage == kStages) stage = 0, phase ^= 1;
      }
    }
  }
};

#endif

}  // namespace tessera::cuda::tiles
