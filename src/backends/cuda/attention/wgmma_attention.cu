#include "backends/cuda/attention/attention.h"
#include "backends/cuda/wgmma.cuh"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// Bidirectional attention inside tiles, head dim 64. A block takes 128 queries, 64 for each of two warpgroups, while a third
// brings keys and values in. 208 keys at a time: the 1025 tokens of a tile are 4.93 pieces of 208, so 1.5 % of the scores
// are padding (with 128: 12 %).
constexpr int kThreads = 384;
constexpr int kQueries = 128;
constexpr int kKeys = 208;
constexpr int kHeadDim = 64;
constexpr int kStages = 2;
constexpr int kQueryBytes = kQueries * kHeadDim * 2;
constexpr int kKeyBytes = kKeys * kHeadDim * 2;
constexpr int kBytes = kQueryBytes + kStages * 2 * kKeyBytes + 1024 + 256;
static_assert(kBytes == shared_bytes::kWgmmaAttention64 && kKeyBytes % 1024 == 0);

struct TileParams {
  CUtensorMap queries, keys;  ///< of the packed rows, boxes of 128 and of 208 rows
  void* out;
  int64_t out_stride;
  int tokens, heads;
  float scale_log2;
};

#ifdef TESSERA_WGMMA_HERE

/// Scores of one piece to weights, in place; returns the factors by which earlier sums shrink.
__device__ __forceinline__ void soften(float* scores, int hidden_from, float scale_log2, float* best, float* total,
                                       float* shrink) {
  const int q = threadIdx.x % 4;
  if (hidden_from < kKeys) {
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (j * 8 + 2 * q + i % 2 >= hidden_from) scores[4 * j + i] = -INFINITY;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float m = best[h];
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) m = fmaxf(m, fmaxf(scores[4 * j + 2 * h], scores[4 * j + 2 * h + 1]));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    const float base = m * scale_log2;
    shrink[h] = exp2f(best[h] * scale_log2 - base);
    best[h] = m;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& s = scores[4 * j + 2 * h + i];
        s = exp2f(s * scale_log2 - base);
        sum += s;
      }
    total[h] = total[h] * shrink[h] + sum;
  }
}

#endif

template <class T>
__global__ __launch_bounds__(kThreads, 1) void tile_kernel(const __grid_constant__ TileParams p) {
#ifdef TESSERA_WGMMA_HERE
  extern __shared__ unsigned char raw[];
  const uint32_t base = (shared_address(raw) + 1023u) & ~1023u;
  auto k_at = [&](int s) { return base + kQueryBytes + static_cast<uint32_t>(s) * 2 * kKeyBytes; };
  auto v_at = [&](int s) { return k_at(s) + kKeyBytes; };
  const uint32_t barriers = base + kQueryBytes + kStages * 2 * kKeyBytes, query_full = barriers;
  auto k_full = [&](int s) { return barriers + 8 + static_cast<uint32_t>(s) * 32; };
  auto v_full = [&](int s) { return k_full(s) + 8; };
  auto k_empty = [&](int s) { return k_full(s) + 16; };
  auto v_empty = [&](int s) { return k_full(s) + 24; };
  const int group = threadIdx.x / 128;
  const int query0 = static_cast<int>(blockIdx.x) * kQueries, head = static_cast<int>(blockIdx.y);
  const int row0 = static_cast<int>(blockIdx.z) * p.tokens;
  // The last block of a tile often has queries for one warpgroup only (1025 = 8 * 128 + 1).
  const int busy = p.tokens - query0 > 64 ? 2 : 1;
  if (threadIdx.x == 0) {
    barrier_init(query_full, 1);
    for (int s = 0; s < kStages; ++s) {
      barrier_init(k_full(s), 1);
      barrier_init(v_full(s), 1);
      barrier_init(k_empty(s), busy);
      barrier_init(v_empty(s), busy);
    }
    barrier_publish();
  }
  __syncthreads();
  const int pieces = (p.tokens + kKeys - 1) / kKeys;
  const int width = p.heads * kHeadDim;

  if (group == 0) {
    give_registers<24>();
    if (threadIdx.x == 0) {
      wait_for_previous();
      barrier_expect(query_full, kQueryBytes);
      copy_box(base, &p.queries, head * kHeadDim, row0 + query0, query_full);
      for (int i = 0; i < pieces; ++i) {
        const int s = i % kStages;
        const uint32_t phase = static_cast<uint32_t>(i / kStages) & 1;
        barrier_wait(k_empty(s), phase ^ 1);
        barrier_expect(k_full(s), kKeyBytes);
        copy_box(k_at(s), &p.keys, width + head * kHeadDim, row0 + i * kKeys, k_full(s));
        barrier_wait(v_empty(s), phase ^ 1);
        barrier_expect(v_full(s), kKeyBytes);
        copy_box(v_at(s), &p.keys, 2 * width + head * kHeadDim, row0 + i * kKeys, v_full(s));
      }
    }
  } else if (group <= busy) {
    take_registers<240>();
    wait_for_previous();
    const uint64_t queries = operand(base + (group - 1) * 64 * 128);
    float out[32], best[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
#pragma unroll
    for (float& o : out) o = 0;
    barrier_wait(query_full, 0);
    for (int i = 0; i < pieces; ++i) {
      const int s = i % kStages;
      const uint32_t phase = static_cast<uint32_t>(i / kStages) & 1;
      float scores[kKeys / 2];
      barrier_wait(k_full(s), phase);
      const uint64_t keys = operand(k_at(s));
      wgmma_fence();
#pragma unroll
      for (int d = 0; d < kHeadDim / 16; ++d) wgmma<T, kKeys>(scores, queries + 2 * d, keys + 2 * d, d != 0);
      wgmma_commit();
      wgmma_wait<0>();
      if (threadIdx.x % 128 == 0) barrier_arrive(k_empty(s));

      float shrink[2];
      soften(scores, p.tokens - i * kKeys, p.scale_log2, best, total, shrink);
#pragma unroll
      for (int d = 0; d < 32; ++d) out[d] *= shrink[d % 4 / 2];
      uint32_t weights[kKeys / 16][4];
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j)
#pragma unroll
        for (int r = 0; r < 4; ++r) weights[j][r] = pack2<T>(scores[8 * j + 2 * r], scores[8 * j + 2 * r + 1]);
      barrier_wait(v_full(s), phase);
      wgmma_fence();
      // 16 keys are 2048 bytes of V.
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) wgmma_values<T>(out, weights[j], operand(v_at(s)) + j * (2048 >> 4), 1);
      wgmma_commit();
      wgmma_wait<0>();
      if (threadIdx.x % 128 == 0) barrier_arrive(v_empty(s));
    }
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = total[h];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const int query = query0 + (group - 1) * 64 + threadIdx.x % 128 / 32 * 16 + h * 8 + lane / 4;
      if (query >= p.tokens) continue;
      const float inverse = 1.0f / sum;
      T* to = static_cast<T*>(p.out) + static_cast<int64_t>(row0 + query) * p.out_stride + head * kHeadDim + 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j)
        *reinterpret_cast<uint32_t*>(to + j * 8) = pack2<T>(out[4 * j + 2 * h] * inverse, out[4 * j + 2 * h + 1] * inverse);
    }
  }
  let_next_start();
#endif
}

}  // namespace

void wgmma_tile_attention(Stream& stream, const TileAttentionArgs& args) {
  const DType dtype = args.qkv.dtype;
  const int64_t rows = args.tiles * args.tokens, columns = 3 * static_cast<int64_t>(args.heads) * kHeadDim;
  const TileParams p{.queries = tensor_map(dtype, args.qkv.data, rows, columns, args.qkv.row_stride, kQueries),
                     .keys = tensor_map(dtype, args.qkv.data, rows, columns, args.qkv.row_stride, kKeys),
                     .out = args.out.data,
                     .out_stride = args.out.row_stride,
                     .tokens = static_cast<int>(args.tokens),
                     .heads = args.heads,
                     .scale_log2 = args.scale * 1.4426950408889634f};
  const Grid grid{plain::blocks_for(args.tokens, kQueries), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(args.tiles)};
  dispatch_half(dtype, "tile_attention", [&](auto zero) {
    launch_fast(stream, "wgmma_tile_attention", grid, kThreads, kBytes, tile_kernel<decltype(zero)>, p);
  });
}

}  // namespace tessera::cuda
