#include <algorithm>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/decode_params.h"
#include "backends/cuda/attention/mma_rows.cuh"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/sizing.h"

namespace tessera::cuda {
namespace {

// Where ring_decode.cu does not serve. A block serves one sequence, one key head and one split of its keys; the query heads that share
// the key head are the rows of mma.sync (16 at most), so each key is read once for all of them. Four warps take 16 keys in turns, the
// next 16 on their way in registers. A second kernel merges the splits.
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;

struct SplitParams : DecodeParams {
  float* partial;  ///< of several splits [sequences, heads, splits, head_dim + 2]: weighted sum, maximum, total
  int heads;
};

__device__ __forceinline__ void add_split(MergedRow& merged, float value, float best, float total, float scale_log2) {
  const float m = fmaxf(merged.best, best);
  if (m == -INFINITY) return;
  const float old = fast_exp2((merged.best - m) * scale_log2), own = fast_exp2((best - m) * scale_log2);
  merged = {merged.value * old + value * own, m, merged.total * old + total * own};
}

__device__ __forceinline__ float quotient(const MergedRow& merged) {
  return merged.total > 0 ? merged.value / merged.total : 0.0f;
}

/// What the warps leave to each other.
template <int kHeadDim>
constexpr int warp_bytes(int group) {
  return group * WarpRows<__half, kHeadDim>::kLeftStride * 4;
}
static_assert(kWarps * warp_bytes<128>(kRowsOfWarp) <= shared_bytes::kMmaDecode);

template <class T, int kHeadDim>
struct Keys {
  const SplitParams& p;
  const int* table;
  int kv_head, keys, end;

  __device__ __forceinline__ const T* place(int entry, int key,
                                            bool value) const {  // KvElements::index without its divisions
    const int within = ((kv_head << p.block_shift) + (key & ((1 << p.block_shift) - 1))) * kHeadDim;
    return static_cast<const T*>(p.kv.base) + entry * p.kv.block_elements + (value ? p.kv.block_elements >> 1 : 0) +
           within;
  }

  /// Steps first, first + kWarps, ...
  __device__ __forceinline__ void attend(WarpRows<T, kHeadDim>& rows, int first) const {
    auto row_of = [&](int key, bool value) {
      const int inside = min(key, keys - 1);
      return place(__ldg(table + (inside >> p.block_shift)), inside, value);
    };
    KeyStep<kHeadDim> now, then;
    if (first < end) now.template load<T>(first * kKeysOfStep, row_of);
    for (int i = first; i < end; i += 2 * kWarps) {
      if (i + kWarps < end) then.template load<T>((i + kWarps) * kKeysOfStep, row_of);
      rows.attend(now, i * kKeysOfStep, keys, p.scale_log2);
      if (i + kWarps >= end) break;
      if (i + 2 * kWarps < end) now.template load<T>((i + 2 * kWarps) * kKeysOfStep, row_of);
      rows.attend(then, (i + kWarps) * kKeysOfStep, keys, p.scale_log2);
    }
  }
};

template <class T, int kHeadDim>
__global__ __launch_bounds__(kThreads) void decode_kernel(SplitParams p) {
  using Rows = WarpRows<T, kHeadDim>;
  extern __shared__ float left[];
  const int warp = threadIdx.x / 32;
  const int split = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y), s = static_cast<int>(blockIdx.z);
  let_next_start();
  wait_for_previous();
  const int64_t token = p.query_offsets[s];
  if (p.query_offsets[s + 1] == token) return;  // a surplus sequence
  const int keys = p.kv_lengths[s];
  const int steps = (keys + kKeysOfStep - 1) / kKeysOfStep, per_split = (steps + p.splits - 1) / p.splits;
  const int64_t head0 = static_cast<int64_t>(kv_head) * p.group * kHeadDim;
  Rows rows;
  rows.load_queries(static_cast<const T*>(p.q) + token * p.q_stride + head0, kHeadDim, p.group);
  const Keys<T, kHeadDim> span{p, p.block_tables + s * p.table_stride, kv_head, keys, min(steps, (split + 1) * per_split)};
  span.attend(rows, split * per_split + warp);
  const int stride = p.group * Rows::kLeftStride;  // floats of a warp
  rows.leave(left + warp * stride, p.group);
  __syncthreads();

  T* out = static_cast<T*>(p.out) + token * p.out_stride + head0;
  for (int index = threadIdx.x; index < p.group * kHeadDim; index += kThreads) {
    const int row = index / kHeadDim, d = index % kHeadDim;
    const MergedRow merged = merge_warps<Rows>(left, kWarps, stride, row, d, p.scale_log2);
    if (p.splits == 1) {
      out[index] = static_cast<T>(quotient(merged));
      continue;
    }
    float* to =
        p.partial + ((static_cast<int64_t>(s) * p.heads + kv_head * p.group + row) * p.splits + split) * (kHeadDim + 2);
    to[d] = merged.value;
    if (d == 0) {
      to[kHeadDim] = merged.best;
      to[kHeadDim + 1] = merged.total;
    }
  }
}

template <class T, int kHeadDim>
__global__ __launch_bounds__(kHeadDim) void merge_kernel(SplitParams p) {
  const int s = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x), d = static_cast<int>(threadIdx.x);
  let_next_start();
  wait_for_previous();
  const int64_t token = p.query_offsets[s];
  if (p.query_offsets[s + 1] == token) return;
  const float* from = p.partial + (static_cast<int64_t>(s) * p.heads + head) * p.splits * (kHeadDim + 2);
  MergedRow merged;
  for (int i = 0; i < p.splits; ++i, from += kHeadDim + 2)
    add_split(merged, from[d], from[kHeadDim], from[kHeadDim + 1], p.scale_log2);
  static_cast<T*>(p.out)[token * p.out_stride + static_cast<int64_t>(head) * kHeadDim + d] =
      static_cast<T>(quotient(merged));
}

/// As many splits as give every multiprocessor two blocks, each with at least 64 keys (a turn of its warps). Depends
/// on the step's shape alone, so that a captured graph serves every step of its bucket.
int split_count(const DeviceLimits& limits, const PagedAttentionArgs& args) {
  const int64_t blocks = std::max<int64_t>(1, args.shape.decodes * args.kv_heads);
  const int64_t wanted = 2 * std::max<int64_t>(1, limits.multiprocessors) / blocks;
  const int64_t most = std::max<int64_t>(1, args.shape.max_kv / (kKeysOfStep * kWarps));
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::min<int64_t>(most, kMaxSplits)));
}

}  // namespace

void split_decode_attention(Stream& stream, const PagedAttentionArgs& args) {
  const int64_t decodes = args.shape.decodes;
  if (decodes == 0) return;
  SplitParams p{decode_params(args, split_count(cuda_stream(stream).device.limits, args)), /*partial=*/nullptr, args.heads};
  if (p.splits > 1)
    p.partial = static_cast<float*>(
        operator_scratch(stream, split_attention_bytes(decodes, args.heads, args.head_dim), "paged_attention"));
  const Grid grid{static_cast<unsigned>(p.splits), static_cast<unsigned>(args.kv_heads), static_cast<unsigned>(decodes)};
  const Grid merge{static_cast<unsigned>(args.heads), static_cast<unsigned>(decodes)};
  dispatch_half(args.q.dtype, "paged_attention", [&](auto zero) {
    using T = decltype(zero);
    auto run = [&]<int kHeadDim>() {
      launch_fast(stream, "split_decode_attention", grid, kThreads, static_cast<size_t>(kWarps * warp_bytes<kHeadDim>(p.group)),
                  decode_kernel<T, kHeadDim>, p);
      if (p.splits > 1) launch_fast(stream, "merge_decode_attention", merge, kHeadDim, 0, merge_kernel<T, kHeadDim>, p);
    };
    args.head_dim == 64 ? run.template operator()<64>() : run.template operator()<128>();
  });
}

}  // namespace tessera::cuda
