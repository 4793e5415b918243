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
// rows of mma.sync (16 at most), so each key is read once for all of them. Four warps take 16 keys in turns, each with a
// ring of its own in shared memory that asynchronous copies keep full. Only the newest key is written by the step itself:
// all others are on their way before the kernel ahead has ended. Where the ring does not fit, keys go through registers.
// Where blocks can form a cluster (sm_90), the splits of a key head are one, and each merges a part of the result in its
// shared memory; elsewhere a second kernel merges them.
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kMostInCluster = 8;  ///< what every device with clusters allows
constexpr int kPiece = kThreads;   ///< elements of the result that one block of a cluster merges at a time

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
  int warp_bytes;  ///< of shared memory
  float* partial;  ///< without clusters: [sequences, heads, splits, head_dim + 2]: weighted sum, maximum, total
  int heads;
};

/// What the splits of a key head send each other. Without clusters in the machine code: one split.
struct Cluster {
  /// Orders execution, not memory: what is sent, the receiver's barrier counts.
  __device__ __forceinline__ static void arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
  }
  __device__ __forceinline__ static void wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
  }
  /// One thread: `barrier` will count `bytes`.
  __device__ __forceinline__ static void expect(uint32_t barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(barrier)
                 : "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#endif
  }
  __device__ __forceinline__ static void wait_for_sent(uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred p;\nretry:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0;\n"
        "@p bra done;\nbra retry;\ndone:\n}\n" ::"r"(barrier)
        : "memory");
#endif
  }
  /// To the place of `at` in the shared memory of block `rank`, whose `barrier` counts it.
  __device__ __forceinline__ static void send(const float* at, float v, int rank, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .b32 there, counts;\nmapa.shared::cluster.u32 there, %0, %2;\nmapa.shared::cluster.u32 counts, %3, "
        "%2;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], %1, [counts];\n}\n" ::"r"(
            shared_address(at)),
        "r"(__float_as_uint(v)), "r"(rank), "r"(barrier)
        : "memory");
#endif
  }
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

/// Shared memory of a block: the warps' rings (what they leave takes their place), then what a cluster's blocks send: of
/// each piece that a block merges, of each row's maximum and total, and the barrier that counts it.
template <int kHeadDim, int kStages>
constexpr int warp_bytes(int group) {
  return std::max(kStages * SharedStep<kHeadDim>::kBytes, group * WarpRows<__half, kHeadDim>::kLeftStride * 4);
}
constexpr int sent_bytes(int elements, int splits) {
  const int pieces = (elements + kPiece - 1) / kPiece;
  return ((pieces + splits - 1) / splits * splits * kPiece + splits * 2 * kRowsOfWarp) * 4 + 16;
}
static_assert(kWarps * warp_bytes<128, 0>(kRowsOfWarp) + sent_bytes(kRowsOfWarp * 128, kMostInCluster) <=
              shared_bytes::kMmaDecode);

template <class T, int kHeadDim, int kStages>
struct Keys {
  const DecodeParams& p;
  const int* table;
  int kv_head, keys, steps, end;
  uint32_t ring;

  __device__ __forceinline__ const T* place(int entry, int key,
                                            bool value) const {  // KvElements::index without its divisions
    const int within = ((kv_head << p.block_shift) + (key & ((1 << p.block_shift) - 1))) * kHeadDim;
    return static_cast<const T*>(p.kv.base) + entry * p.kv.block_elements + (value ? p.kv.block_elements >> 1 : 0) +
           within;
  }
  __device__ __forceinline__ int entry_of(int step) const {
    return step < end ? __ldg(table + (step * kKeysOfStep >> p.block_shift)) : 0;
  }
  __device__ __forceinline__ void copy(int step, int stage, int entry) const {
    const int key0 = step * kKeysOfStep;
    SharedStep<kHeadDim>::template copy<T>(ring + static_cast<uint32_t>(stage * SharedStep<kHeadDim>::kBytes),
                                           place(entry, key0, false), place(entry, key0, true), keys - 1 - key0);
  }

  /// Steps first, first + kWarps, ... through the ring. `load_queries` waits for the kernel ahead.
  template <class Load>
  __device__ __forceinline__ void through_ring(WarpRows<T, kHeadDim>& rows, int first, Load load_queries) const {
    int entries[kStages];
#pragma unroll
    for (int a = 0; a < kStages; ++a) entries[a] = entry_of(first + a * kWarps);
#pragma unroll
    for (int a = 0; a < kStages; ++a) {
      const int step = first + a * kWarps;
      if (step < end && step < steps - 1) copy(step, a, entries[a]);
      copy_commit();
    }
    int entry = entry_of(first + kStages * kWarps);
    load_queries();
#pragma unroll
    for (int a = 0; a < kStages; ++a) {
      const int step = first + a * kWarps;
      if (step < end && step == steps - 1) copy(step, a, entries[a]);
    }
    copy_commit();
    int stage = 0;
    for (int step = first; step < end; step += kWarps) {
      if (step == steps - 1)
        copy_wait<0>();
      else
        copy_wait<kStages>();
      __syncwarp();  // the other lanes' copies have landed, too
      rows.attend(SharedStep<kHeadDim>(ring + static_cast<uint32_t>(stage * SharedStep<kHeadDim>::kBytes)),
                  step * kKeysOfStep, keys, p.scale_log2);
      __syncwarp();  // all have read the stage
      const int next = step + kStages * kWarps;
      if (next < end) copy(next, stage, entry);
      copy_commit();
      entry = entry_of(next + kWarps);
      if (++stage == kStages) stage = 0;
    }
  }

  /// The same through registers: blocks of the cache may have any number of tokens.
  template <class Load>
  __device__ __forceinline__ void through_registers(WarpRows<T, kHeadDim>& rows, int first, Load load_queries) const {
    auto row_of = [&](int key, bool value) {
      const int inside = min(key, keys - 1);
      return place(__ldg(table + (inside >> p.block_shift)), inside, value);
    };
    KeyStep<kHeadDim> now, then;
    load_queries();
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

/// kStages 0: no ring.
template <class T, int kHeadDim, bool kCluster, int kStages>
__global__ __launch_bounds__(kThreads) void decode_kernel(const __grid_constant__ DecodeParams p) {
  using Rows = WarpRows<T, kHeadDim>;
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = threadIdx.x / 32;
  const int split = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y), s = static_cast<int>(blockIdx.z);
  let_next_start();
  // A step's integers lie there before its first kernel that does not overlap another.
  const int64_t token = p.query_offsets[s];
  if (p.query_offsets[s + 1] == token)
    return wait_for_previous();  // a surplus sequence; the next kernel counts on the wait
  const bool together = kCluster && p.splits > 1;
  const int elements = p.group * kHeadDim, pieces = (elements + kPiece - 1) / kPiece;
  const int places = (pieces + p.splits - 1) / p.splits * p.splits * kPiece;
  auto* sent = reinterpret_cast<float*>(shared + kWarps * p.warp_bytes);
  const uint32_t barrier = shared_address(sent + places + p.splits * 2 * kRowsOfWarp);
  if (together) {
    if (threadIdx.x == 0) {
      int own = 0;  // elements of the pieces that this block merges
      for (int piece = split; piece < pieces; piece += p.splits) own += min(kPiece, elements - piece * kPiece);
      Cluster::expect(barrier, p.splits * (own + 2 * p.group) * 4);
    }
    __syncwarp();
    Cluster::arrive();
  }
  const int keys = p.kv_lengths[s];
  const int steps = (keys + kKeysOfStep - 1) / kKeysOfStep, per_split = (steps + p.splits - 1) / p.splits;
  const Keys<T, kHeadDim, kStages> span{p,
                                        p.block_tables + s * p.table_stride,
                                        kv_head,
                                        keys,
                                        steps,
                                        min(steps, (split + 1) * per_split),
                                        shared_address(shared) + static_cast<uint32_t>(warp * p.warp_bytes)};
  const int64_t head0 = static_cast<int64_t>(kv_head) * p.group * kHeadDim;
  Rows rows;
  auto load_queries = [&] {
    wait_for_previous();
    rows.load_queries(static_cast<const T*>(p.q) + token * p.q_stride + head0, kHeadDim, p.group);
  };
  if constexpr (kStages > 0)
    span.through_ring(rows, split * per_split + warp, load_queries);
  else
    span.through_registers(rows, split * per_split + warp, load_queries);
  rows.leave(reinterpret_cast<float*>(shared + warp * p.warp_bytes), p.group);
  __syncthreads();

  const auto* left = reinterpret_cast<const float*>(shared);
  T* out = static_cast<T*>(p.out) + token * p.out_stride + head0;
  if (together) Cluster::wait();  // all blocks of the cluster run, and their barriers are made
  for (int index = threadIdx.x; index < elements; index += kThreads) {
    const int row = index / kHeadDim, d = index % kHeadDim;
    const MergedRow merged = merge_warps<Rows>(left, kWarps, p.warp_bytes / 4, row, d, p.scale_log2);
    if (p.splits == 1) {
      out[index] = static_cast<T>(quotient(merged));
      continue;
    }
    if (!kCluster) {
      float* to = p.partial +
                  ((static_cast<int64_t>(s) * p.heads + kv_head * p.group + row) * p.splits + split) * (kHeadDim + 2);
      to[d] = merged.value;
      if (d == 0) {
        to[kHeadDim] = merged.best;
        to[kHeadDim + 1] = merged.total;
      }
      continue;
    }
    const int piece = index / kPiece, rank = piece % p.splits;
    Cluster::send(sent + (piece / p.splits * p.splits + split) * kPiece + threadIdx.x, merged.value, rank, barrier);
    if (d < p.splits) {
      Cluster::send(sent + places + (split * kRowsOfWarp + row) * 2, merged.best, d, barrier);
      Cluster::send(sent + places + (split * kRowsOfWarp + row) * 2 + 1, merged.total, d, barrier);
    }
  }
  if (!together) return;
  Cluster::wait_for_sent(barrier);
  for (int index = split * kPiece + static_cast<int>(threadIdx.x); index < elements; index += p.splits * kPiece) {
    const float* values = sent + (index / kPiece - split) * kPiece + threadIdx.x;
    const float* totals = sent + places + index / kHeadDim * 2;
    MergedRow merged;
    for (int other = 0; other < p.splits; ++other)
      add_split(merged, values[other * kPiece], totals[other * kRowsOfWarp * 2], totals[other * kRowsOfWarp * 2 + 1],
                p.scale_log2);
    out[index] = static_cast<T>(quotient(merged));
  }
}

template <class T, int kHeadDim>
__global__ __launch_bounds__(kHeadDim) void merge_kernel(DecodeParams p) {
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
                 .warp_bytes = 0,
                 .partial = nullptr,
                 .heads = args.heads};
  const bool merges = p.splits > 1 && !clusters;
  if (merges)
    p.partial = static_cast<float*>(
        operator_scratch(stream, split_attention_bytes(decodes, args.heads, args.head_dim), "paged_attention"));
  const int64_t allowed = std::max(limits.shared_memory_per_block, limits.shared_memory_optin);
  const Grid grid{static_cast<unsigned>(p.splits), static_cast<unsigned>(args.kv_heads), static_cast<unsigned>(decodes)};
  const Grid merge{static_cast<unsigned>(args.heads), static_cast<unsigned>(decodes)};
  const int sent = clusters && p.splits > 1 ? sent_bytes(p.group * args.head_dim, p.splits) : 0;
  const LaunchOptions options{.overlap = true, .cluster = clusters ? static_cast<unsigned>(p.splits) : 1};
  dispatch_half(args.q.dtype, "paged_attention", [&](auto zero) {
    using T = decltype(zero);
    auto run = [&]<int kHeadDim, bool kCluster, int kStages>() {
      p.warp_bytes = warp_bytes<kHeadDim, kStages>(p.group);
      launch_fast(stream, "split_decode_attention", grid, kThreads, static_cast<size_t>(kWarps * p.warp_bytes + sent),
                  decode_kernel<T, kHeadDim, kCluster, kStages>, p, options);
      if (merges) launch_fast(stream, "merge_decode_attention", merge, args.head_dim, 0, merge_kernel<T, kHeadDim>, p);
    };
    auto run_dim = [&]<int kHeadDim, int kStages>() {
      if (!clusters) return run.template operator()<kHeadDim, false, 0>();
      const bool ring = p.block_shift >= std::countr_zero(unsigned{kKeysOfStep}) &&
                        kWarps * warp_bytes<kHeadDim, kStages>(p.group) + sent <= allowed;
      ring ? run.template operator()<kHeadDim, true, kStages>() : run.template operator()<kHeadDim, true, 0>();
    };
    // What a warp brings, at most: where keys are few the room serves the next products' rings.
    const int64_t turns = (args.shape.max_kv + kKeysOfStep * kWarps * p.splits - 1) / (kKeysOfStep * kWarps * p.splits);
    if (args.head_dim == 64)
      turns == 1 ? run_dim.template operator()<64, 1>() : run_dim.template operator()<64, 4>();
    else
      turns == 1 ? run_dim.template operator()<128, 1>() : run_dim.template operator()<128, 3>();
  });
}

}  // namespace tessera::cuda
