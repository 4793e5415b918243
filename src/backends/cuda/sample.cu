#include "ops/sample.h"

#include <algorithm>

#include "backends/cuda/fast.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/operators.h"
#include "backends/cuda/plain/plain.h"

namespace tessera::cuda {
namespace {

// Greedy rows that nothing edits need the largest logit and the sum of exponentials: blocks share a row, then a warp
// merges what they found. (One block a row would read at a hundredth of the device's speed.)
constexpr int kThreads = 256;
constexpr int kMaxPieces = 128;

struct Found {
  unsigned long long key;  ///< of the largest allowed logit: its bits in order, then the lower id
  float best, sum;         ///< over the whole piece: the largest logit, the sum of exponentials relative to it
};

struct GreedyParams {
  const float* logits;
  int64_t stride, vocab, valid_ids;
  int pieces;
  Found* found;  ///< [rows, pieces]
  int* out_ids;
  float* out_logprobs;
};

/// Bits that order as the floats do, then the lower id.
__device__ __forceinline__ unsigned long long rank_key(float v, int64_t id) {
  const uint32_t u = __float_as_uint(v);
  return static_cast<unsigned long long>(u & 0x80000000u ? ~u : u | 0x80000000u) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

__device__ __forceinline__ void join(Found& a, const Found& b) {
  a.key = b.key > a.key ? b.key : a.key;
  const float best = fmaxf(a.best, b.best);
  if (best == -INFINITY) return;
  a.sum = a.sum * __expf(a.best - best) + b.sum * __expf(b.best - best);
  a.best = best;
}

__device__ __forceinline__ void join_warp(Found& f) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    Found other;
    other.key = __shfl_xor_sync(0xffffffffu, f.key, mask);
    other.best = __shfl_xor_sync(0xffffffffu, f.best, mask);
    other.sum = __shfl_xor_sync(0xffffffffu, f.sum, mask);
    join(f, other);
  }
}

/// What one thread has found. Its ids come in ascending order, so of equals the first one stays.
struct Search {
  float best = -INFINITY, sum = 0;  ///< of all ids
  float top = -INFINITY;            ///< of the allowed ones
  int64_t id = -1;

  /// Takes N logits at once: one maximum and one scaling for all. What is not there is -infinity.
  template <int N>
  __device__ __forceinline__ void take(const float (&v)[N], const int64_t (&ids)[N], int64_t valid_ids) {
    float most = v[0];
#pragma unroll
    for (int i = 1; i < N; ++i) most = fmaxf(most, v[i]);
    if (most > best) {
      sum *= __expf(best - most);
      best = most;
    }
    if (best == -INFINITY) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum += __expf(v[i] - best);
      if (v[i] > top && ids[i] < valid_ids) {
        top = v[i];
        id = ids[i];
      }
    }
  }
};

constexpr int kVectors = 4;  // of four logits that a thread has under way at once

// A piece is a range of vectors of four logits; the last one has what is left over, too.
__global__ __launch_bounds__(kThreads) void greedy_kernel(GreedyParams p) {
  __shared__ Found warps[kThreads / 32];
  let_next_start();
  wait_for_previous();
  const float* row = p.logits + blockIdx.y * p.stride;
  const int64_t vectors = p.vocab / 4;
  const int64_t begin = vectors * blockIdx.x / p.pieces, end = vectors * (blockIdx.x + 1) / p.pieces;
  Search search;
  for (int64_t at = begin + threadIdx.x; at < end; at += kVectors * kThreads) {
    float v[4 * kVectors];
    int64_t ids[4 * kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int64_t vector = at + i * kThreads;
      const float4 four = vector < end ? reinterpret_cast<const float4*>(row)[vector]
                                       : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
      v[4 * i] = four.x, v[4 * i + 1] = four.y, v[4 * i + 2] = four.z, v[4 * i + 3] = four.w;
#pragma unroll
      for (int j = 0; j < 4; ++j) ids[4 * i + j] = 4 * vector + j;
    }
    search.take(v, ids, p.valid_ids);
  }
  if (const int64_t i = 4 * vectors + threadIdx.x; blockIdx.x + 1 == p.pieces && i < p.vocab)
    search.take<1>({row[i]}, {i}, p.valid_ids);
  Found f{search.id < 0 ? 0 : rank_key(search.top, search.id), search.best, search.sum};
  join_warp(f);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = f;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / 32; ++w) join(f, warps[w]);
  p.found[static_cast<int64_t>(blockIdx.y) * p.pieces + blockIdx.x] = f;
}

__global__ __launch_bounds__(32) void merge_greedy_kernel(GreedyParams p) {
  let_next_start();
  wait_for_previous();
  const Found* found = p.found + static_cast<int64_t>(blockIdx.x) * p.pieces;
  Found f{0, -INFINITY, 0};
  for (int i = threadIdx.x; i < p.pieces; i += 32) join(f, found[i]);
  join_warp(f);
  if (threadIdx.x != 0) return;
  const auto id = static_cast<int>(0xffffffffu - static_cast<uint32_t>(f.key));
  p.out_ids[blockIdx.x] = id;
  p.out_logprobs[blockIdx.x] = p.logits[blockIdx.x * p.stride + id] - (f.best + logf(f.sum));
}

}  // namespace

void sample(Stream& stream, const SampleArgs& args) {
  CudaStream& s = cuda_stream(stream);
  const int64_t rows = args.logits.rows();
  const int64_t pieces = std::clamp<int64_t>(4 * s.device.limits.multiprocessors / std::max<int64_t>(1, rows), 1, kMaxPieces);
  const bool vectors = args.logits.row_stride % 4 == 0 && reinterpret_cast<uintptr_t>(args.logits.data) % sizeof(float4) == 0;
  if (!args.all_greedy || args.edits || args.masks || args.max_top_logprobs > 0 || s.device.limits.warp_size != 32 || !vectors ||
      args.workspace.bytes() < static_cast<size_t>(rows * pieces) * sizeof(Found) ||
      reinterpret_cast<uintptr_t>(args.workspace.data) % alignof(Found) != 0)
    return plain::sample(stream, args);
  const GreedyParams p{.logits = args.logits.ptr<float>(),
                       .stride = args.logits.row_stride,
                       .vocab = args.logits.row_elements(),
                       .valid_ids = args.valid_ids,
                       .pieces = static_cast<int>(pieces),
                       .found = static_cast<Found*>(args.workspace.data),
                       .out_ids = args.out_ids.ptr<int>(),
                       .out_logprobs = args.out_logprobs.ptr<float>()};
  launch_fast(stream, "greedy_sample", Grid{static_cast<unsigned>(pieces), static_cast<unsigned>(rows)}, kThreads, 0,
              greedy_kernel, p);
  launch_fast(stream, "merge_greedy_sample", Grid{static_cast<unsigned>(rows)}, 32, 0, merge_greedy_kernel, p);
}

}  // namespace tessera::cuda
