#include "ops/sample.h"

#include <algorithm>

#include "backends/cuda/choice.cuh"
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

struct GreedyParams {
  const float* logits;
  int64_t stride, vocab, valid_ids;
  int pieces;
  Choice* found;  ///< [rows, pieces]
  int* out_ids;
  float* out_logprobs;
};

/// What one thread has found. Its ids come in ascending order, so of equals the first one stays.
struct Search {
  float best = -INFINITY, sum = 0;  ///< of all ids
  float top = -INFINITY;            ///< of the allowed ones
  int64_t id = INT32_MAX;

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
  __shared__ Choice warps[kThreads / 32];
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
  const Choice own = join_warp({search.top, static_cast<int>(search.id), search.best, search.sum});
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();
  if (threadIdx.x != 0) return;
  Choice f = own;
  for (int w = 1; w < kThreads / 32; ++w) f = join(f, warps[w]);
  p.found[static_cast<int64_t>(blockIdx.y) * p.pieces + blockIdx.x] = f;
}

constexpr int kAtOnce = 5;  ///< what a lane has of as many pieces as the device has multiprocessors

__device__ __forceinline__ Choice load_choice(const Choice* from) {
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  return {.top = __uint_as_float(v.x), .id = static_cast<int>(v.y), .best = __uint_as_float(v.z), .sum = __uint_as_float(v.w)};
}

__global__ __launch_bounds__(32) void merge_greedy_kernel(GreedyParams p) {
  let_next_start();
  wait_for_previous();
  const Choice* found = p.found + static_cast<int64_t>(blockIdx.x) * p.pieces;
  Choice f;
  for (int first = static_cast<int>(threadIdx.x); first < p.pieces; first += 32 * kAtOnce) {
    Choice some[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (first + 32 * i < p.pieces) some[i] = load_choice(found + first + 32 * i);
#pragma unroll
    for (const Choice& each : some) f = join(f, each);
  }
  f = join_warp(f);
  if (threadIdx.x != 0) return;
  // Logits that are no numbers choose none; the next step looks an id up before the host hears of it.
  p.out_ids[blockIdx.x] = f.id == INT32_MAX ? 0 : f.id;
  p.out_logprobs[blockIdx.x] = f.top - (f.best + logf(f.sum));
}

}  // namespace

void sample(Stream& stream, const SampleArgs& args) {
  CudaStream& s = cuda_stream(stream);
  const int64_t rows = args.logits.rows();
  const bool found = args.found && args.found->parts > 0;
  const int64_t pieces =
      found ? args.found->parts : std::clamp<int64_t>(4 * s.device.limits.multiprocessors / std::max<int64_t>(1, rows), 1, kMaxPieces);
  const Tensor& room = found ? args.found->room : args.workspace;
  const bool vectors = args.logits.row_stride % 4 == 0 && reinterpret_cast<uintptr_t>(args.logits.data) % sizeof(float4) == 0;
  if (!found && (!args.all_greedy || args.edits || args.masks || args.max_top_logprobs > 0 || s.device.limits.warp_size != 32 || !vectors ||
                 room.bytes() < static_cast<size_t>(rows * pieces) * sizeof(Choice) ||
                 reinterpret_cast<uintptr_t>(room.data) % alignof(Choice) != 0))
    return plain::sample(stream, args);
  const GreedyParams p{.logits = args.logits.ptr<float>(),
                       .stride = args.logits.row_stride,
                       .vocab = args.logits.row_elements(),
                       .valid_ids = args.valid_ids,
                       .pieces = static_cast<int>(pieces),
                       .found = static_cast<Choice*>(room.data),
                       .out_ids = args.out_ids.ptr<int>(),
                       .out_logprobs = args.out_logprobs.ptr<float>()};
  if (!found)
    launch_fast(stream, "greedy_sample", Grid{static_cast<unsigned>(pieces), static_cast<unsigned>(rows)}, kThreads, 0,
                greedy_kernel, p);
  launch_fast(stream, "merge_greedy_sample", Grid{static_cast<unsigned>(rows)}, 32, 0, merge_greedy_kernel, p);
}

}  // namespace tessera::cuda
