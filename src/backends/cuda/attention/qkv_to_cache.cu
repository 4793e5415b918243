#include "backends/cuda/attention/attention.h"

#include <algorithm>
#include <bit>

#include "backends/cuda/fast.cuh"
#include "backends/cuda/plain/kv_layout.h"

namespace tessera::cuda {
namespace {

// A head of a token is kLanes neighbouring lanes, each with 8 dimensions of the lower half and the 8 that turn with them. A warp takes
// the heads of one token in turns, whose angles it holds.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kWarpsEach = 24;  ///< of a multiprocessor, for enough loads in flight

struct CacheParams {
  void* qkv;
  int64_t stride, tokens;
  const float* bias;  ///< [(heads + 2 * kv_heads) * head_dim], to be added first, or null
  const float* q_norm;
  const float* k_norm;
  const float* cos_sin;
  int64_t cos_sin_stride;
  const int* slots;
  int heads, kv_heads, head_dim;
  float eps;
  int block_shift;  ///< blocks are a power of two of tokens
  KvElements kv;
  int shares;  ///< warps that share a token's heads
};

/// Where a head's key or value of a slot begins (KvElements::index without its divisions).
template <class T>
__device__ __forceinline__ T* place(const CacheParams& p, int slot, int kv_head, bool value) {
  const int within = ((kv_head << p.block_shift) + (slot & ((1 << p.block_shift) - 1))) * p.head_dim;
  return static_cast<T*>(p.kv.base) + (slot >> p.block_shift) * p.kv.block_elements + (value ? p.kv.block_elements >> 1 : 0) + within;
}

/// 8 dimensions of each half of a head.
struct Halves {
  float low[8], high[8];
};

/// The sums with the bias, rounded as a product with a bias stores them.
template <class T>
__device__ __forceinline__ void add_bias(const float* bias, int half, Halves& v) {
  float low[8], high[8];
  load8(bias, low);
  load8(bias + half, high);
#pragma unroll
  for (int i = 0; i < 8; ++i) v.low[i] += low[i], v.high[i] += high[i];
  unpack8<T>(pack8<T>(v.low), v.low);
  unpack8<T>(pack8<T>(v.high), v.high);
}

/// All lanes call it; those beyond the head have zeros.
template <int kLanes>
__device__ __forceinline__ void norm_head(const CacheParams& p, const float* weight, int half, Halves& v) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) squares += v.low[i] * v.low[i] + v.high[i] * v.high[i];
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, mask);
  if (!weight) return;
  const float inverse = 1.0f / sqrtf(squares / static_cast<float>(p.head_dim) + p.eps);
  float low[8], high[8];
  load8(weight, low);
  load8(weight + half, high);
#pragma unroll
  for (int i = 0; i < 8; ++i) v.low[i] *= inverse * low[i], v.high[i] *= inverse * high[i];
}

template <class T, int kLanes>
__global__ __launch_bounds__(kThreads) void cache_kernel(CacheParams p) {
  constexpr int kHeads = 32 / kLanes;
  const unsigned item = blockIdx.x * kWarps + threadIdx.x / 32;
  const int64_t token = item / p.shares;
  let_next_start();
  wait_for_previous();
  if (token >= p.tokens) return;
  const int lane = threadIdx.x % 32, d = lane % kLanes * 8, half = p.head_dim / 2, slot = p.slots[token];
  const bool there = d < half, norms = p.q_norm || p.k_norm;
  float cos[8] = {}, sin[8] = {};
  if (there) load8(p.cos_sin + token * p.cos_sin_stride + d, cos), load8(p.cos_sin + token * p.cos_sin_stride + half + d, sin);
  T* const row = static_cast<T*>(p.qkv) + token * p.stride + d;
  const int all = p.heads + 2 * p.kv_heads;
  for (int first = static_cast<int>(item % p.shares) * kHeads; first < all; first += p.shares * kHeads) {
    const int head = first + lane / kLanes;
    const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;
    const bool inside = there && head < all && (is_q || slot >= 0);
    Halves v{};
    if (inside) {
      unpack8<T>(*reinterpret_cast<const uint4*>(row + head * p.head_dim), v.low);
      unpack8<T>(*reinterpret_cast<const uint4*>(row + head * p.head_dim + half), v.high);
      if (p.bias) add_bias<T>(p.bias + head * p.head_dim + d, half, v);
    }
    if (norms) {
      const float* weight = is_q ? p.q_norm : p.k_norm;
      norm_head<kLanes>(p, inside && !is_v && weight ? weight + d : nullptr, half, v);
    }
    if (!inside) continue;
    T* to = is_q ? row + head * p.head_dim : place<T>(p, slot, head - p.heads - (is_v ? p.kv_heads : 0), is_v) + d;
    if (!is_v) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float low = v.low[i], high = v.high[i];
        v.low[i] = low * cos[i] - high * sin[i];
        v.high[i] = high * cos[i] + low * sin[i];
      }
    }
    *reinterpret_cast<uint4*>(to) = pack8<T>(v.low);
    *reinterpret_cast<uint4*>(to + half) = pack8<T>(v.high);
  }
}

}  // namespace

void fast_qkv_to_cache(Stream& stream, const QkvToCacheArgs& args, const Tensor& bias) {
  CacheParams p{.qkv = args.qkv.data,
                .stride = args.qkv.row_stride,
                .tokens = args.qkv.rows(),
                .bias = bias.ptr<float>(),
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
                .kv = kv_elements(args.kv),
                .shares = 1};
  const int lanes = std::max(4, static_cast<int>(std::bit_ceil(static_cast<unsigned>(args.head_dim / 16))));
  const int64_t turns = (args.heads + 2 * args.kv_heads + 32 / lanes - 1) / (32 / lanes);
  const int64_t wanted = cuda_stream(stream).device.limits.multiprocessors * kWarpsEach / std::max<int64_t>(1, p.tokens);
  p.shares = static_cast<int>(std::clamp<int64_t>(wanted, 1, turns));
  const Grid grid{plain::blocks_for(p.tokens * p.shares, kWarps)};
  dispatch_half(args.qkv.dtype, "qkv_to_cache", [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = lanes == 4 ? cache_kernel<T, 4> : lanes == 8 ? cache_kernel<T, 8> : cache_kernel<T, 16>;
    launch_fast(stream, "qkv_to_cache", grid, kThreads, 0, kernel, p);
  });
}

}  // namespace tessera::cuda
