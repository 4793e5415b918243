#include <algorithm>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/wgmma_flash.cuh"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// Bidirectional attention inside tiles, head dim 64, one persistent block a multiprocessor. 208 keys a piece: the 1025 tokens
// of a tile are 4.93 pieces, so 1.5 % of the scores are padding (with 128: 12 %). A row that 128 leave over (the 1025th) would
// cost a whole job: it takes ordinary arithmetic instead, after the jobs, a head of a tile at a time.
constexpr int kHeadDim = 64;
template <class T>
using Shape = FlashShape<T, kHeadDim, 208, 3>;
static_assert(Shape<__half>::kBytes == shared_bytes::kWgmmaAttention64);
constexpr int kWorkers = 256;  ///< threads of the two warpgroups that compute
constexpr int kMostLeftover = 2;   ///< rows a head and tile
constexpr int kLeftoversAJob = 4;  ///< what a block does in the time of a job

struct TileParams {
  CUtensorMap queries, keys;  ///< of the packed rows, boxes of 128 and of 208 rows
  const void* qkv;
  void* out;
  int64_t stride, out_stride;
  int tiles, tokens, heads;
  int blocks;     ///< jobs a head and tile
  int leftover;   ///< rows a head and tile beyond the jobs
  float scale_log2;
};

#ifdef TESSERA_WGMMA_HERE

template <class S>
struct TileSource {
  const TileParams& p;

  __device__ FlashJob job(int index) const {
    if (index >= p.tiles * p.heads * p.blocks) return {};
    const int block = index % p.blocks, pair = index / p.blocks, query0 = block * S::kQueries;
    return {.row = static_cast<int64_t>(pair / p.heads) * p.tokens + query0,
            .rows = p.tokens - query0,
            .head = pair % p.heads,
            .keys = p.tokens,
            .visible = p.tokens,
            .pieces = (p.tokens + S::kKeys - 1) / S::kKeys,
            .index = index};
  }
  __device__ FlashJob first() const { return job(static_cast<int>(blockIdx.x)); }
  __device__ FlashJob next(const FlashJob& last) const { return job(last.index + static_cast<int>(gridDim.x)); }

  __device__ void load_queries(const FlashJob& job, uint32_t to, uint32_t barrier) const {
    if (threadIdx.x % 32 != 0) return;
    barrier_expect(barrier, S::kQueryBytes);
    copy_box(to, &p.queries, job.head * kHeadDim, static_cast<int>(job.row), barrier);
  }
  __device__ void load_keys(const FlashJob& job, int piece, bool value, uint32_t to, uint32_t barrier) const {
    if (threadIdx.x % 32 != 0) return;
    const int tile = job.index / p.blocks / p.heads;
    barrier_expect(barrier, S::kKeyBytes);
    copy_box(to, &p.keys, ((value ? 2 : 1) * p.heads + job.head) * kHeadDim, tile * p.tokens + piece * S::kKeys, barrier);
  }
};

/// One leftover query row of one head of one tile, by all threads that compute: 8 lanes share a key, each with 8 dimensions;
/// every 8 lanes keep a softmax of their own until all meet. `meeting`: shared memory, [warps][head dim + 2].
template <class T>
__device__ __forceinline__ void leftover_row(const TileParams& p, int pair, int row, float* meeting) {
  constexpr int kWarps = kWorkers / 32, kAtOnce = 8, kStride = kWarps * 4;
  const int worker = static_cast<int>(threadIdx.x) - 128, warp = worker / 32, lane = worker % 32;
  const int head = pair % p.heads, width = p.heads * kHeadDim;
  const int64_t first = static_cast<int64_t>(pair / p.heads) * p.tokens;
  const T* from = static_cast<const T*>(p.qkv) + first * p.stride + head * kHeadDim + lane % 8 * 8;
  float query[8], sums[8] = {}, best = -INFINITY, total = 0;
  unpack8<T>(*reinterpret_cast<const uint4*>(from + row * p.stride), query);
#pragma unroll
  for (float& v : query) v *= p.scale_log2;
  uint4 keys[kAtOnce], values[kAtOnce];
  auto load = [&](int key0) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const T* at = from + static_cast<int64_t>(min(key0 + i * kStride, p.tokens - 1)) * p.stride + width;
      keys[i] = *reinterpret_cast<const uint4*>(at);
      values[i] = *reinterpret_cast<const uint4*>(at + width);
    }
  };
  int key0 = warp * 4 + lane / 8;
  load(key0);
  for (; key0 - lane / 8 < p.tokens; key0 += kAtOnce * kStride) {
    float scores[kAtOnce], m = best;
    uint4 here[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      float k[8], s = 0;
      unpack8<T>(keys[i], k);
#pragma unroll
      for (int d = 0; d < 8; ++d) s = fmaf(query[d], k[d], s);
      s += __shfl_xor_sync(0xffffffffu, s, 1);
      s += __shfl_xor_sync(0xffffffffu, s, 2);
      s += __shfl_xor_sync(0xffffffffu, s, 4);
      scores[i] = key0 + i * kStride < p.tokens ? s : -INFINITY;
      m = fmaxf(m, scores[i]);
      here[i] = values[i];
    }
    load(key0 + kAtOnce * kStride);
    const float base = m == -INFINITY ? 0.0f : m, shrink = fast_exp2(best - base);
    best = m;
    total *= shrink;
#pragma unroll
    for (float& v : sums) v *= shrink;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      float v[8];
      unpack8<T>(here[i], v);
      const float weight = fast_exp2(scores[i] - base);
      total += weight;
#pragma unroll
      for (int d = 0; d < 8; ++d) sums[d] = fmaf(weight, v[d], sums[d]);
    }
  }
#pragma unroll
  for (int step = 8; step < 32; step *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, best, step), m = fmaxf(best, other);
    const float mine = m == -INFINITY ? 0.0f : fast_exp2(best - m), theirs = m == -INFINITY ? 0.0f : fast_exp2(other - m);
    best = m;
    total = total * mine + __shfl_xor_sync(0xffffffffu, total, step) * theirs;
#pragma unroll
    for (float& v : sums) v = v * mine + __shfl_xor_sync(0xffffffffu, v, step) * theirs;
  }
  float* left = meeting + warp * (kHeadDim + 2);
  if (lane < 8) {
#pragma unroll
    for (int d = 0; d < 8; ++d) left[lane * 8 + d] = sums[d];
    left[kHeadDim] = best;
    left[kHeadDim + 1] = total;
  }
  named_barrier_sync(3, kWorkers);
  if (worker < kHeadDim) {
    float m = -INFINITY, value = 0, weight = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, meeting[w * (kHeadDim + 2) + kHeadDim]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* at = meeting + w * (kHeadDim + 2);
      const float f = fast_exp2(at[kHeadDim] - m);
      value += f * at[worker];
      weight += f * at[kHeadDim + 1];
    }
    static_cast<T*>(p.out)[(first + row) * p.out_stride + head * kHeadDim + worker] = static_cast<T>(value / weight);
  }
  named_barrier_sync(3, kWorkers);
}

#endif

template <class T>
__global__ __launch_bounds__(Shape<T>::kThreads, 1) void tile_kernel(const __grid_constant__ TileParams p) {
#ifdef TESSERA_WGMMA_HERE
  using S = Shape<T>;
  extern __shared__ unsigned char raw[];
  const uint32_t base = (shared_address(raw) + 1023u) & ~1023u;
  const FlashMemory<S> memory{base};
  const TileSource<S> source{p};
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);  // known to be the same in a warp
  if (threadIdx.x == 0) memory.init();
  __syncthreads();
  if (group == 0) {
    give_registers<24>();
    wait_for_previous();
    if (threadIdx.x < 32) flash_produce(source, memory);
  } else {
    take_registers<240>();
    wait_for_previous();
    FlashGroup<S, false> worker(memory, group - 1);
    worker.run(source, static_cast<T*>(p.out), p.out_stride, p.scale_log2);
    if (p.leftover > 0) {
      // Job after job, blocks take leftovers where their jobs end first.
      static_assert(kWorkers / 32 * (kHeadDim + 2) * 4 <= S::kQueryBytes);
      float* meeting = reinterpret_cast<float*>(raw + (base - shared_address(raw)));
      const int pairs = p.tiles * p.heads, jobs = pairs * p.blocks;
      const int rounds = (jobs - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
      named_barrier_sync(3, kWorkers);
      for (int unit = static_cast<int>(blockIdx.x) + rounds * static_cast<int>(gridDim.x) - jobs; unit * kLeftoversAJob < pairs;
           unit += static_cast<int>(gridDim.x))
        for (int pair = unit * kLeftoversAJob; pair < min(pairs, (unit + 1) * kLeftoversAJob); ++pair)
          for (int row = p.tokens - p.leftover; row < p.tokens; ++row) leftover_row<T>(p, pair, row, meeting);
    }
  }
  let_next_start();
#endif
}

}  // namespace

void wgmma_tile_attention(Stream& stream, const TileAttentionArgs& args) {
  const DType dtype = args.qkv.dtype;
  const int64_t rows = args.tiles * args.tokens, columns = 3 * static_cast<int64_t>(args.heads) * kHeadDim;
  constexpr int kQueries = Shape<__half>::kQueries, kKeys = Shape<__half>::kKeys;
  const int tokens = static_cast<int>(args.tokens);
  const int beyond = tokens % kQueries;
  const int leftover = beyond <= kMostLeftover ? beyond : 0;
  const TileParams p{.queries = tensor_map(dtype, args.qkv.data, rows, columns, args.qkv.row_stride, kQueries),
                     .keys = tensor_map(dtype, args.qkv.data, rows, columns, args.qkv.row_stride, kKeys),
                     .qkv = args.qkv.data,
                     .out = args.out.data,
                     .stride = args.qkv.row_stride,
                     .out_stride = args.out.row_stride,
                     .tiles = static_cast<int>(args.tiles),
                     .tokens = tokens,
                     .heads = args.heads,
                     .blocks = (tokens - leftover + kQueries - 1) / kQueries,
                     .leftover = leftover,
                     .scale_log2 = args.scale * 1.4426950408889634f};
  const int pairs = p.tiles * p.heads;
  const int units = pairs * p.blocks + (leftover > 0 ? (pairs + kLeftoversAJob - 1) / kLeftoversAJob : 0);
  const Grid grid{static_cast<unsigned>(std::min<int64_t>(units, std::max<int64_t>(1, cuda_stream(stream).device.limits.multiprocessors)))};
  dispatch_half(dtype, "tile_attention", [&](auto zero) {
    using T = decltype(zero);
    launch_fast(stream, "wgmma_tile_attention", grid, Shape<T>::kThreads, Shape<T>::kBytes, tile_kernel<T>, p);
  });
}

}  // namespace tessera::cuda
