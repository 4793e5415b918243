#include "backends/cuda/attention/attention.h"

#include <bit>
#include "backends/cuda/fast.cuh"
#include "backends/cuda/plain/kv_layout.h"

namespace tessera::cuda {
namespace {

// A warp a token and head; a lane holds up to 4 neighbouring pairs (d, d + head_dim / 2), loaded two at a time.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

struct CacheParams {
  void* qkv;
  int64_t stride, tokens;
  const float* q_norm;
  const float* k_norm;
  const float* cos_sin;
  int64_t cos_sin_stride;
  const int* slots;
  int heads, kv_heads, head_dim;
  float eps;
  int block_shift;  ///< blocks are a power of two of tokens
  KvElements kv;
};

template <class T>
__global__ __launch_bounds__(kThreads) void cache_kernel(CacheParams p) {
  const int lane = threadIdx.x % 32;
  const unsigned all = p.heads + 2 * p.kv_heads;
  const unsigned item = blockIdx.x * kWarps + threadIdx.x / 32;
  let_next_start();
  wait_for_previous();
  if (item >= static_cast<unsigned>(p.tokens) * all) return;
  const int64_t token = item / all;
  const int head = static_cast<int>(item % all), half = p.head_dim / 2;
  const int slot = p.slots[token];
  // KvElements::index without its divisions.
  auto place = [&](int kv_head, bool value) {
    const int within = ((kv_head << p.block_shift) + (slot & ((1 << p.block_shift) - 1))) * p.head_dim;
    return static_cast<T*>(p.kv.base) + (slot >> p.block_shift) * p.kv.block_elements +
           (value ? p.kv.block_elements >> 1 : 0) + within;
  };
  T* row = static_cast<T*>(p.qkv) + token * p.stride + static_cast<int64_t>(head) * p.head_dim;
  const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;
  if (!is_q && slot < 0) return;
  if (is_v) {
    T* to = place(head - p.heads - p.kv_heads, true);
    for (int d = 2 * lane; d < p.head_dim; d += 64)
      *reinterpret_cast<uint32_t*>(to + d) = *reinterpret_cast<const uint32_t*>(row + d);
    return;
  }
  float2 low[2], high[2];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int d = 2 * lane + 64 * i;
    if (d >= half) continue;
    low[i] = unpack2<T>(*reinterpret_cast<const uint32_t*>(row + d));
    high[i] = unpack2<T>(*reinterpret_cast<const uint32_t*>(row + half + d));
    squares += low[i].x * low[i].x + low[i].y * low[i].y + high[i].x * high[i].x + high[i].y * high[i].y;
  }
  const float* weight = is_q ? p.q_norm : p.k_norm;
  if (weight) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, mask);
    const float inverse = 1.0f / sqrtf(squares / static_cast<float>(p.head_dim) + p.eps);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int d = 2 * lane + 64 * i;
      if (d >= half) continue;
      low[i] = make_float2(low[i].x * inverse * weight[d], low[i].y * inverse * weight[d + 1]);
      high[i] = make_float2(high[i].x * inverse * weight[half + d], high[i].y * inverse * weight[half + d + 1]);
    }
  }
  T* to = is_q ? row : place(head - p.heads, false);
  const float* angles = p.cos_sin + token * p.cos_sin_stride;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int d = 2 * lane + 64 * i;
    if (d >= half) continue;
    const float2 c = *reinterpret_cast<const float2*>(angles + d), s = *reinterpret_cast<const float2*>(angles + half + d);
    *reinterpret_cast<uint32_t*>(to + d) = pack2<T>(low[i].x * c.x - high[i].x * s.x, low[i].y * c.y - high[i].y * s.y);
    *reinterpret_cast<uint32_t*>(to + half + d) =
        pack2<T>(high[i].x * c.x + low[i].x * s.x, high[i].y * c.y + low[i].y * s.y);
  }
}

}  // namespace

void fast_qkv_to_cache(Stream& stream, const QkvToCacheArgs& args) {
  const CacheParams p{.qkv = args.qkv.data,
                      .stride = args.qkv.row_stride,
                      .tokens = args.qkv.rows(),
                      .q_norm = args.q_norm.ptr<float>(),
                      .k_norm = args.k_norm.ptr<float>(),
                      .cos_sin = args.cos_sin.ptr<float>(),
                      .cos_sin_stride = args.cos_sin.row_stride,
                      .slots = args.slots.ptr<int>(),
                      .heads = args.heads,
                      .kv_heads = args.kv_heads,
                      .head_dim = args.head_dim,
                      .eps = args.norm_eps,
                      .block_shift = std::countr_zero(static_cast<unsigned>(args.kv.layout.block_size)),
                      .kv = kv_elements(args.kv)};
  const Grid grid{plain::blocks_for(p.tokens * (args.heads + 2 * args.kv_heads), kWarps)};
  dispatch_half(args.qkv.dtype, "qkv_to_cache", [&](auto zero) {
    launch_fast(stream, "qkv_to_cache", grid, kThreads, 0, cache_kernel<decltype(zero)>, p);
  });
}

}  // namespace tessera::cuda
