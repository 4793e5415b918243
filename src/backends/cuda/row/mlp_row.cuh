#pragma once

// The MLP of a decoder layer of one sequence: gate and up, and down, with all of a block's weights in its multiprocessor before its
// turn comes. A block of each lies on every multiprocessor that the cluster of attend_row.cuh leaves free.

#include "backends/cuda/row/row_product.cuh"
#include "backends/cuda_choice/row_shape.h"

namespace tessera::cuda::row {

struct MlpParams {
  const void* weight;
  const float* norm_weight;  ///< of gate and up
  float eps;
  const void* x;
  const float* residual;  ///< of down
  void* out;
};

/// A block's equal share of `columns`.
struct Share {
  int begin, count;
  __device__ __forceinline__ explicit Share(unsigned columns)
      : begin(static_cast<int>(columns * blockIdx.x / gridDim.x)),
        count(static_cast<int>(columns * (blockIdx.x + 1) / gridDim.x) - begin) {}
};

// Weights' rows lie in two halves, which lanes of even and odd g read: 64 bytes apart modulo 128, so that they meet no bank twice.
namespace gates {
constexpr int kWarps = kHidden / kSlice, kThreads = kWarps * 32;
constexpr int kGroups = 2 * kMostGates / 8;  // of 8 rows; slots are gates and ups in turns
constexpr int kHeld = 2, kSent = kGroups - kHeld;  // in registers, for which shared memory has no room beside down's; there
constexpr int kSentColumns = 4 * kSent;
constexpr int kRow = kHidden * 2;  // bytes
constexpr int kHalfBytes = kSentColumns * kRow + 64;
constexpr int kRuns = (kSentColumns + 6) / 8 + 1;  // of columns whose gates, and whose ups, lie together in the weight
constexpr int kNorm = 2 * kHalfBytes, kSums = kNorm + kHidden * 4, kSquares = kSums + 8 * kGroups * kSumStride * 4;
constexpr int kBarriers = kSquares + kSumStride * 4, kShared = kBarriers + 8 * (kRuns + 1);
constexpr int kHeldAt = kSentColumns - 8;  // the column in whose place those that registers hold come first
constexpr int kAhead = 2, kPause = 800;  // runs on their way at a time; nanoseconds, see pause()
}  // namespace gates

#ifdef TESSERA_WGMMA_HERE
template <class T>
struct GateUp {
  const MlpParams& p;
  uint32_t base;
  Share share{kFfn};
  int sent, first_run, runs;

  __device__ __forceinline__ GateUp(const MlpParams& p, uint32_t base)
      : p(p), base(base), sent(min(share.count, gates::kSentColumns)), first_run(8 - share.begin % 8), runs(1 + (sent - first_run + 7) / 8) {}

  __device__ __forceinline__ uint32_t there(int run) const { return base + gates::kBarriers + 8 * run; }
  __device__ __forceinline__ uint32_t first_there() const { return there(gates::kRuns); }
  /// The weight interleaves gates and ups in groups of 8 rows.
  __device__ __forceinline__ const T* row(int slot) const {
    const int c = share.begin + slot / 2;
    return static_cast<const T*>(p.weight) + (c / 8 * 16 + c % 8 + slot % 2 * 8) * kHidden;
  }
  /// Columns first .. first + count, which lie together in the weight, to the place of column `to`.
  __device__ __forceinline__ void bring(int first, int count, int to, uint32_t barrier) const {
#pragma unroll 1
    for (int up = 0; up < 2; ++up) copy_bytes(base + up * gates::kHalfBytes + to * gates::kRow, row(2 * first + up), count * gates::kRow, barrier);
  }
  /// The norm's weights, and the columns that registers hold.
  __device__ __forceinline__ void bring_first() const {
    const int held = share.count - sent, together = min(held, 8 - (share.begin + sent) % 8);
    barrier_expect(first_there(), kHidden * 4 + 2 * held * gates::kRow);
    copy_bytes(base + gates::kNorm, p.norm_weight, kHidden * 4, first_there());
    if (together > 0) bring(sent, together, gates::kHeldAt, first_there());
    if (held > together) bring(sent + together, held - together, gates::kHeldAt + together, first_there());
  }
  __device__ __forceinline__ void bring_run(int i) const {
    const int c = i ? first_run + (i - 1) * 8 : 0, columns = min(i ? 8 : first_run, sent - c);
    barrier_expect(there(i), 2 * columns * gates::kRow);
    bring(c, columns, c, there(i));
  }
};
#endif

template <class T>
__global__ __maxnreg__(80) void gate_up_row(const __grid_constant__ MlpParams p) {
#ifdef TESSERA_WGMMA_HERE
  using namespace gates;
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const GateUp<T> block(p, shared_address(shared));
  let_next_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i <= kRuns; ++i) barrier_init(block.there(i), 1);
    barrier_publish();
    pause(kPause);
    block.bring_first();
    block.bring_run(0);
  }
  __syncthreads();
  const uint32_t own = block.base + g % 2 * kHalfBytes + g / 2 * kRow + (warp * kSlice + 8 * q) * 2;
  auto weights = [&](int group, int half) { return load_shared(own + group * 4 * kRow + half * kHalf * 2); };
  wait_for(block.first_there());
  uint4 held[kHeld][2];
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) held[i][half] = weights(kHeldAt / 4 + i, half);
  __syncthreads();
  if (threadIdx.x == 0)
#pragma unroll 1
    for (int i = 1; i < block.runs; ++i) {
      if (i >= kAhead) wait_for(block.there(i - kAhead));
      block.bring_run(i);
    }
  __syncwarp();  // else the others of this warp would go ahead, and their wait holds up the one who brings what they wait for
#pragma unroll 1
  for (int i = 0; i < block.runs; ++i) wait_for(block.there(i));
  wait_for_previous();

  auto* sums = reinterpret_cast<float*>(shared + kSums);
  auto* squares = reinterpret_cast<float*>(shared + kSquares);
  NormedSlice slice;
  slice.load(static_cast<const float*>(p.x), warp, q);
  float factor = 1;
  if constexpr (!kDividesLate<T>) {
    slice.leave_squares(squares, warp, lane);
    __syncthreads();
    factor = inverse_norm<kWarps>(squares, p.eps);
  }
  uint4 x[2];
  slice.pack<T>(x, factor, block.base + kNorm, warp, q);
  float sum[kGroups];
  product<T, kGroups>(sum, x, [&](int group, int half) {
    return group < kSent ? weights(group, half) : held[group < kSent ? 0 : group - kSent][half];
  });
  if constexpr (kDividesLate<T>) slice.leave_squares(squares, warp, lane);
  leave_sums(sums, sum, warp, lane);
  __syncthreads();
  if (const int c = static_cast<int>(threadIdx.x); c < block.share.count) {
    const float inverse = kDividesLate<T> ? inverse_norm<kWarps>(squares, p.eps) : 1.0f;
    const float gate = add_warps<kWarps>(sums, 2 * c) * inverse, up = add_warps<kWarps>(sums, 2 * c + 1) * inverse;
    static_cast<T*>(p.out)[block.share.begin + c] = static_cast<T>(fast_silu(gate) * up);
  }
#endif
}

namespace downs {
constexpr int kWarps = 12, kThreads = kWarps * 32;
constexpr int kSlices = kFfn / kSlice, kMost = (kSlices + kWarps - 1) / kWarps;  // of a warp
constexpr int kRow = kFfn * 2, kHalfBytes = 4 * kRow + 64;
constexpr int kAhead = 4, kPause = 2000;  // rows on their way at a time; nanoseconds
constexpr int kSums = 2 * kHalfBytes, kBarriers = kSums + 8 * kSumStride * 4, kShared = kBarriers + 8 * kMostDown;
static_assert(kMostDown == 8 && kLeastDown > 4);
}  // namespace downs

template <class T>
__global__ __maxnreg__(56) void down_row(const __grid_constant__ MlpParams p) {
#ifdef TESSERA_WGMMA_HERE
  using namespace downs;
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const uint32_t base = shared_address(shared), there = base + kBarriers;  // one a row
  const Share share(kHidden);
  let_next_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kMostDown; ++i) barrier_init(there + 8 * i, 1);
    barrier_publish();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    pause(kPause);
    constexpr int ahead = kAhead;
#pragma unroll 1
    for (int i = 0; i < share.count; ++i) {
      if (i >= ahead) wait_for(there + 8 * (i - ahead));
      barrier_expect(there + 8 * i, kRow);
      copy_bytes(base + i / 4 * kHalfBytes + i % 4 * kRow, static_cast<const T*>(p.weight) + (share.begin + i) * kFfn, kRow, there + 8 * i);
    }
  }
  __syncwarp();
  // Of x each lane takes the half of a slice that is its column's, see multiply_group.
  const T* from = static_cast<const T*>(p.x) + warp * kSlice + g % 2 * kHalf + 8 * q;
  asm volatile("" : "+l"(from));  // the address is there before the turn
#pragma unroll 1
  for (int i = 0; i < share.count; ++i) wait_for(there + 8 * i);
  wait_for_previous();
  float residual = 0;
  if (static_cast<int>(threadIdx.x) < share.count) residual = load_written_float(p.residual + share.begin + threadIdx.x);
  uint4 x[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i)
    if (i < kSlices / kWarps || warp < kSlices % kWarps) x[i] = load_written(from + i * kWarps * kSlice);
  const uint32_t own = base + g % 2 * kHalfBytes + g / 2 * kRow + (warp * kSlice + 8 * q) * 2;
  float c[4] = {};
#pragma unroll
  for (int i = 0; i < kMost; ++i)
    if (const int at = i * kWarps * kSlice * 2; i < kSlices / kWarps || warp < kSlices % kWarps)
      multiply<T>(c, load_shared(own + at), load_shared(own + at + kHalf * 2), x[i]);
  const float sum[1] = {c[0] + c[3]};
  auto* sums = reinterpret_cast<float*>(shared + kSums);
  leave_sums<1>(sums, sum, warp, lane);
  __syncthreads();
  if (const int r = static_cast<int>(threadIdx.x); r < share.count)
    static_cast<float*>(p.out)[share.begin + r] = residual + add_warps<kWarps>(sums, r % 4 * 2 + r / 4);
#endif
}

}  // namespace tessera::cuda::row
