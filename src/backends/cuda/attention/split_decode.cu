#include <algorithm>
#include <bit>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/mma_rows.cuh"
#include "backends/cuda/plain/kv_layout.h"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/sizing.h"

namespace tessera::cuda {
namespace {

// A block serves one sequence, one key head and one split of its keys; the query heads that share the key head are the
// rows of mma.sync (16 at most), so each key is read once for all of them. Four warps take 16 keys in turns, the next ones
// on their way while these are worked on. Where blocks can form a cluster (sm_90), the splits of a key head are one, and
// meet in each other's shared memory; elsewhere a second kernel merges them.
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kMostInCluster = 8;  ///< what every device with clusters allows

struct DecodeParams {
  const void* q;
  void* out;
  int64_t q_stride, out_stride;
  int group, splits;
  float scale_log2;
  const int* query_offsets;
  const int* kv_lengths;
  const int* block_tables;
  int64_t table_stride;
  int block_shift;  ///< blocks are a power of two of tokens
  KvElements kv;
  float* partial;  ///< without clusters: [sequences, heads, splits, head_dim + 2]: weighted sum, maximum, total
  int heads;
};

/// The splits of a key head in each other's shared memory. Without clusters in the machine code: one split.
struct SplitCluster {
  __device__ __forceinline__ static void meet() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
  }
  /// The float at `at` of this block's shared memory, as block `rank` has it.
  __device__ __forceinline__ static float read(const float* at, int rank) {
    float v = *at;
#if __CUDA_ARCH__ >= 900
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(at)), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(there));
#endif
    return v;
  }
};

__device__ __forceinline__ void add_split(MergedRow& merged, float value, float best, float total, float scale_log2) {
  const float m = fmaxf(merged.best, best);
  if (m == -INFINITY) return;
  const float old = fast_exp2((merged.best - m) * scale_log2), own = fast_exp2((best - m) * scale_log2);
  merged = {merged.value * old + value * own, m, merged.total * old + total * own};
}

template <class T, int kHeadDim, bool kCluster>
__global__ __launch_bounds__(kThreads) void decode_kernel(DecodeParams p) {
  using Rows = WarpRows<T, kHeadDim>;
  static_assert((kWarps + 1) * Rows::kLeft * 4 <= shared_bytes::kMmaDecode);
  extern __shared__ __align__(16) float meeting[];  // what each warp leaves
  const int warp = threadIdx.x / 32;
  const int split = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y), s = static_cast<int>(blockIdx.z);
  wait_for_previous();
  const int64_t token = p.query_offsets[s];
  if (p.query_offsets[s + 1] == token) return;  // a surplus sequence
  const int keys = p.kv_lengths[s];
  const int steps = (keys + kKeysOfStep - 1) / kKeysOfStep;
  const int per_split = (steps + p.splits - 1) / p.splits;
  const int end = min(steps, (split + 1) * per_split);

  const int* table = p.block_tables + s * p.table_stride;
  const T* cache = static_cast<const T*>(p.kv.base);
  // KvElements::index without its divisions.
  auto row_of = [&](int key, bool value) {
    const int inside = min(key, keys - 1);
    const int64_t block = __ldg(table + (inside >> p.block_shift));
    const int within = ((kv_head << p.block_shift) + (inside & ((1 << p.block_shift) - 1))) * kHeadDim;
    return cache + block * p.kv.block_elements + (value ? p.kv.block_elements >> 1 : 0) + within;
  };
  Rows rows;
  KeyStep<kHeadDim> now, then;
  int i = split * per_split + warp;
  if (i < end) now.template load<T>(i * kKeysOfStep, row_of);
  rows.load_queries(static_cast<const T*>(p.q) + token * p.q_stride + static_cast<int64_t>(kv_head) * p.group * kHeadDim,
                    kHeadDim, p.group);
  for (; i < end; i += 2 * kWarps) {
    if (i + kWarps < end) then.template load<T>((i + kWarps) * kKeysOfStep, row_of);
    rows.attend(now, i * kKeysOfStep, keys, p.scale_log2);
    if (i + kWarps >= end) break;
    if (i + 2 * kWarps < end) now.template load<T>((i + 2 * kWarps) * kKeysOfStep, row_of);
    rows.attend(then, (i + kWarps) * kKeysOfStep, keys, p.scale_log2);
  }
  let_next_start();
  rows.leave(meeting + warp * Rows::kLeft);
  __syncthreads();

  T* out = static_cast<T*>(p.out) + token * p.out_stride + static_cast<int64_t>(kv_head) * p.group * kHeadDim;
  float* merged_here = meeting + kWarps * Rows::kLeft;  // with a cluster: [group, head_dim + 2]
  for (int index = threadIdx.x; index < p.group * kHeadDim; index += kThreads) {
    const int row = index / kHeadDim, d = index % kHeadDim;
    const MergedRow merged = merge_warps<kHeadDim>(meeting, kWarps, row, d, p.scale_log2);
    if (p.splits == 1) {
      out[index] = static_cast<T>(merged.total > 0 ? merged.value / merged.total : 0.0f);
      continue;
    }
    float* to = kCluster ? merged_here + row * (kHeadDim + 2)
                         : p.partial + ((static_cast<int64_t>(s) * p.heads + kv_head * p.group + row) * p.splits + split) *
                                           (kHeadDim + 2);
    to[d] = merged.value;
    if (d == 0) {
      to[kHeadDim] = merged.best;
      to[kHeadDim + 1] = merged.total;
    }
  }
  if (!kCluster || p.splits == 1) return;
  SplitCluster::meet();
  for (int index = split * kThreads + static_cast<int>(threadIdx.x); index < p.group * kHeadDim; index += p.splits * kThreads) {
    const float* from = merged_here + index / kHeadDim * (kHeadDim + 2);
    float value[kMostInCluster], best[kMostInCluster], total[kMostInCluster];  // all reads on their way at once
#pragma unroll
    for (int other = 0; other < kMostInCluster; ++other) {
      const int rank = min(other, p.splits - 1);
      value[other] = SplitCluster::read(from + index % kHeadDim, rank);
      best[other] = SplitCluster::read(from + kHeadDim, rank);
      if (other >= p.splits) best[other] = -INFINITY;
      total[other] = SplitCluster::read(from + kHeadDim + 1, rank);
    }
    MergedRow merged;
#pragma unroll
    for (int other = 0; other < kMostInCluster; ++other) add_split(merged, value[other], best[other], total[other], p.scale_log2);
    out[index] = static_cast<T>(merged.total > 0 ? merged.value / merged.total : 0.0f);
  }
  SplitCluster::meet();  // nobody's shared memory goes before all have read it
}

template <class T, int kHeadDim>
__global__ __launch_bounds__(kHeadDim) void merge_kernel(DecodeParams p) {
  const int s = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x), d = static_cast<int>(threadIdx.x);
  wait_for_previous();
  let_next_start();
  const int64_t token = p.query_offsets[s];
  if (p.query_offsets[s + 1] == token) return;
  const float* from = p.partial + (static_cast<int64_t>(s) * p.heads + head) * p.splits * (kHeadDim + 2);
  MergedRow merged;
  for (int i = 0; i < p.splits; ++i, from += kHeadDim + 2)
    add_split(merged, from[d], from[kHeadDim], from[kHeadDim + 1], p.scale_log2);
  static_cast<T*>(p.out)[token * p.out_stride + static_cast<int64_t>(head) * kHeadDim + d] =
      static_cast<T>(merged.total > 0 ? merged.value / merged.total : 0.0f);
}

/// As many splits as give every multiprocessor two blocks, each with at least 64 keys (a turn of its warps). Depends
/// on the step's shape alone, so that a captured graph serves every step of its bucket.
int split_count(const DeviceLimits& limits, const PagedAttentionArgs& args, int64_t limit) {
  const int64_t blocks = std::max<int64_t>(1, args.shape.decodes * args.kv_heads);
  const int64_t wanted = 2 * std::max<int64_t>(1, limits.multiprocessors) / blocks;
  const int64_t most = std::max<int64_t>(1, args.shape.max_kv / (kKeysOfStep * kWarps));
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::min(most, limit)));
}

}  // namespace

void split_decode_attention(Stream& stream, const PagedAttentionArgs& args) {
  const int64_t decodes = args.shape.decodes;
  if (decodes == 0) return;
  const DeviceLimits& limits = cuda_stream(stream).device.limits;
  const bool clusters = limits.wgmma;
  DecodeParams p{.q = args.q.data,
                 .out = args.out.data,
                 .q_stride = args.q.row_stride,
                 .out_stride = args.out.row_stride,
                 .group = args.heads / args.kv_heads,
                 .splits = split_count(limits, args, clusters ? kMostInCluster : kMaxSplits),
                 .scale_log2 = args.scale * 1.4426950408889634f,
                 .query_offsets = args.query_offsets.ptr<int>(),
                 .kv_lengths = args.kv_lengths.ptr<int>(),
                 .block_tables = args.block_tables.ptr<int>(),
                 .table_stride = args.block_tables.row_stride,
                 .block_shift = std::countr_zero(static_cast<unsigned>(args.kv.layout.block_size)),
                 .kv = kv_elements(args.kv),
                 .partial = nullptr,
                 .heads = args.heads};
  const bool merges = p.splits > 1 && !clusters;
  if (merges)
    p.partial = static_cast<float*>(
        operator_scratch(stream, split_attention_bytes(decodes, args.heads, args.head_dim), "paged_attention"));
  const Grid grid{static_cast<unsigned>(p.splits), static_cast<unsigned>(args.kv_heads), static_cast<unsigned>(decodes)};
  const Grid merge{static_cast<unsigned>(args.heads), static_cast<unsigned>(decodes)};
  const int meeting = kWarps * kRowsOfWarp + (clusters ? p.group : 0);  // rows of head_dim + 2
  const size_t shared = static_cast<size_t>(meeting * (args.head_dim + 2)) * sizeof(float);
  const LaunchOptions options{.overlap = true, .cluster = clusters ? static_cast<unsigned>(p.splits) : 1};
  dispatch_half(args.q.dtype, "paged_attention", [&](auto zero) {
    using T = decltype(zero);
    auto run = [&](auto kernel, auto merger) {
      launch_fast(stream, "split_decode_attention", grid, kThreads, shared, kernel, p, options);
      if (merges) launch_fast(stream, "merge_decode_attention", merge, args.head_dim, 0, merger, p);
    };
    auto run_dim = [&]<int kHeadDim>() {
      clusters ? run(decode_kernel<T, kHeadDim, true>, merge_kernel<T, kHeadDim>)
               : run(decode_kernel<T, kHeadDim, false>, merge_kernel<T, kHeadDim>);
    };
    args.head_dim == 64 ? run_dim.template operator()<64>() : run_dim.template operator()<128>();
  });
}

}  // namespace tessera::cuda
