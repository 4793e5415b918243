#pragma once

// What attend_row is handed, and where things lie in a block's shared memory.

#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda/row/row_product.cuh"
#include "backends/cuda_choice/row_shape.h"

namespace tessera::cuda::row::attend {

struct AttendParams {
  const void* qkv;
  const void* o;
  const float* bias;  ///< of q | k | v, or null
  const float* norm_weight;
  float eps;
  const float* x;
  float* out;  ///< may be x
  const float* cos_sin;
  const int* slots;
  const int* query_offsets;
  const int* kv_lengths;
  const int* block_table;
  int block_shift;
  KvElements kv;
  float scale_log2;
  int early_tiles;  ///< of keys that have a place of their own
  int shared_bytes;
};

constexpr int kWarps = 16, kThreads = kWarps * 32, kSlices = kHidden / kSlice;
constexpr int kGroup = kHeads / kKvHeads, kShares = kCluster / kKvHeads, kHalfDim = kHeadDim / 2;
constexpr int kQkvRows = (kHeads + 2 * kKvHeads) * kHeadDim / kCluster, kPairs = kQkvRows / 2, kORows = kHidden / kCluster;
constexpr int kQkvGroups = kQkvRows / 8, kOGroups = kORows / 8;
constexpr int kRow = kHidden * 2;  // bytes of a weight's row
constexpr int kEarlyGroups = 3;    // of o, that have a place beside q | k | v
constexpr int kEarlyRows = 4 * kEarlyGroups, kLateRows = kORows / 2 - kEarlyRows;  // of each half of o
constexpr int kTileBytes = kTileKeys * kHeadDim * 2;
constexpr int kQueryStride = 192;  // bytes: 2 queries' vectors meet no bank twice
constexpr int kTogether = 4;       // tiles of keys a softmax update
constexpr int kMergers = 4;         // warps: what all of them would read is more than they would save
constexpr int kArrivals = 5;        // barriers, see Attend::barrier
constexpr int kEndWarps = 3, kEndLanes = kQkvRows / kEndWarps;
static_assert(kHeads * kHeadDim == kHidden && kQkvRows % 8 == 0 && kORows % 8 == 0 && kShares * 8 == kHeadDim && kGroup < 8);
static_assert(kWarps == kCluster && kWarps >= kSlices && kPairs <= kHalfDim + 4 && kEndLanes % 4 == 0);

/// Where things lie in a block's shared memory.
namespace at {
constexpr int kNorm = 0;
constexpr int kQueries = kNorm + kHidden * 4;
constexpr int kMerged = kQueries + 8 * kQueryStride;
constexpr int kStats = kMerged + kShares * 256;
constexpr int kAttended = kStats + kShares * 64;
constexpr int kSums = kAttended + kHidden * 2;
constexpr int kSquares = kSums + kQkvRows * kSumStride * 4;
constexpr int kBarriers = kSquares + kSumStride * 4;
// Weights' rows in two halves, which lanes of even and odd g read: 64 bytes apart modulo 128, so that they meet no bank twice.
constexpr int kEarly = (kBarriers + kArrivals * 8 + 127) / 128 * 128, kEarlyHalf = kEarlyRows * kRow + 64;
constexpr int kQkv = kEarly + 2 * kEarlyHalf, kQkvHalf = kPairs * kRow + 64;
constexpr int kLate = kQkv, kLateHalf = kLateRows * kRow + 64;  // what is left of o's, in the place of q | k | v's
constexpr int kQkvEnd = kQkv + 2 * kQkvHalf, kLateEnd = kLate + 2 * kLateHalf;
// Tiles of keys, from the end on. The late ones take the place of q | k | v, too.
constexpr int kValues = kTileBytes, kScores = 2 * kTileBytes, kScoreStride = kTileKeys + 8;  // of a tile; scores: [8][kScoreStride]
constexpr int kTile = kScores + 8 * kScoreStride * 4;
}  // namespace at
static_assert(at::kQkvEnd % 128 == 0 && at::kTile % 128 == 0);
static_assert(at::kQkvEnd == kAttendFixedBytes && at::kTile == kTileRoom && (at::kQkvEnd - at::kLateEnd) / at::kTile == kLateTiles);

}  // namespace tessera::cuda::row::attend
