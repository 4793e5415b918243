#include <algorithm>
#include <bit>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/wgmma_flash.cuh"
#include "backends/cuda/plain/kv_layout.h"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// Causal attention over the paged cache. A job is 128 or 192 queries of one head, a piece 128 keys: each lane of the loading
// warp brings 64 dimensions of the tokens of a cache block.
constexpr int kKeys = 128;
template <class T, int kHeadDim, int kGroups>
using Shape = FlashShape<T, kHeadDim, kKeys, kHeadDim == 64 ? 4 : 2, kGroups>;
static_assert(Shape<__half, 64, 3>::kBytes == shared_bytes::kWgmmaPrefill64 &&
              Shape<__half, 128, 3>::kBytes == shared_bytes::kWgmmaPrefill128);

struct PagedParams {
  CUtensorMap queries, cache;  ///< boxes of 128 rows; of the tokens of a block, at most kKeys
  void* out;
  int64_t out_stride;
  int heads, kv_heads, group;
  int blocks;  ///< of a job's queries in the longest sequence
  int jobs;
  float scale_log2;
  const int* query_offsets;
  const int* kv_lengths;
  const int* block_tables;
  int64_t table_stride;
  int first_sequence;
  int block_shift;
};

#ifdef TESSERA_WGMMA_HERE

template <class S>
struct PagedSource {
  const PagedParams& p;

  /// Job `index`, or none when its sequence is shorter than the longest. The last queries see the most keys: they come first.
  __device__ FlashJob job(int index) const {
    const int rest = index / p.heads, s = p.first_sequence + rest / p.blocks;
    const int begin = p.query_offsets[s], queries = p.query_offsets[s + 1] - begin, keys = p.kv_lengths[s];
    const int query0 = (p.blocks - 1 - rest % p.blocks) * S::kQueries;
    if (query0 >= queries) return {};
    const int visible = keys - queries + query0 + 1, last = min(keys, visible + S::kQueries - 1);
    return {.row = begin + query0,
            .rows = queries - query0,
            .head = index % p.heads,
            .keys = keys,
            .visible = visible,
            .pieces = (last + kKeys - 1) / kKeys,
            .index = index};
  }
  /// The first job of this block from round `round` on. Rounds go to and fro, so that no block has the longest of each.
  __device__ FlashJob from_round(int round) const {
    const int grid = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    for (;; ++round) {
      const int index = round * grid + (round % 2 ? grid - 1 - block : block);
      if (round * grid >= p.jobs) return {};
      if (index >= p.jobs) continue;
      const FlashJob found = job(index);
      if (found.pieces > 0) return found;
    }
  }
  __device__ FlashJob first() const { return from_round(0); }
  __device__ FlashJob next(const FlashJob& last) const { return from_round(last.index / static_cast<int>(gridDim.x) + 1); }

  __device__ void load_queries(const FlashJob& job, uint32_t to, uint32_t barrier) const {
    if (threadIdx.x % 32 != 0) return;
    barrier_expect(barrier, S::kQueryBytes);
#pragma unroll
    for (int half = 0; half < S::kHeadDim / 64; ++half)
      copy_box(to + half * S::kQueries * 128, &p.queries, job.head * S::kHeadDim + half * 64, static_cast<int>(job.row), barrier);
  }

  /// Only blocks that hold keys of the sequence: what lies behind the last one in shared memory stays as it was.
  __device__ void load_keys(const FlashJob& job, int piece, bool value, uint32_t to, uint32_t barrier) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int tokens = min(1 << p.block_shift, kKeys);  // of a copy: blocks may be longer than a piece
    const int begin = piece * kKeys, copies = (min(kKeys, job.keys - begin) + tokens - 1) / tokens;
    const int* table = p.block_tables + (p.first_sequence + job.index / p.heads / p.blocks) * p.table_stride;
    if (lane == 0) barrier_expect(barrier, copies * tokens * S::kHeadDim * 2);
    __syncwarp();
    const int head = job.head / p.group + (value ? p.kv_heads : 0);
    if (lane >= copies * (S::kHeadDim / 64)) return;  // 32 at most: blocks have at least 8 tokens
    const int half = lane / copies, copy = lane % copies, key = begin + copy * tokens;
    copy_kv(to + (half * kKeys + copy * tokens) * 128, &p.cache, half * 64, key & ((1 << p.block_shift) - 1), head,
            __ldg(table + (key >> p.block_shift)), barrier);
  }
};

#endif

template <class T, int kHeadDim, int kGroups>
__global__ __launch_bounds__(128 * (kGroups + 1), 1) void paged_kernel(const __grid_constant__ PagedParams p) {
#ifdef TESSERA_WGMMA_HERE
  using S = Shape<T, kHeadDim, kGroups>;
  extern __shared__ unsigned char raw[];
  const FlashMemory<S> memory{(shared_address(raw) + 1023u) & ~1023u};
  const PagedSource<S> source{p};
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);  // known to be the same in a warp
  if (threadIdx.x == 0) memory.init();
  __syncthreads();
  if (group == kGroups) {
    give_registers<kGroups == 2 ? 40 : 32>();
    wait_for_previous();
    if (threadIdx.x / 32 % 4 == 0) {
      FlashProducer producer(source, memory);
      for (FlashJob job = source.first(); job.pieces > 0; job = source.next(job)) producer.bring(job);
    }
  } else {
    take_registers<kGroups == 2 ? 232 : 160>();
    wait_for_previous();
    FlashGroup<S, true> worker(memory, group);
    worker.run(source, static_cast<T*>(p.out), p.out_stride, p.scale_log2);
  }
  let_next_start();
#endif
}

/// Pieces that the busiest of `blocks` persistent blocks works on with jobs of `queries`: the first or the last one, as rounds go to and fro.
int64_t busiest(const PagedAttentionArgs& args, int64_t sequences, int queries, int64_t blocks) {
  const int64_t a_sequence = plain::blocks_for(args.shape.max_query, queries), jobs = sequences * a_sequence * args.heads;
  int64_t most = 0;
  for (const int64_t block : {int64_t{0}, blocks - 1}) {
    int64_t pieces = 0;
    for (int64_t round = 0; round * blocks < jobs; ++round) {
      const int64_t job = round * blocks + (round % 2 ? blocks - 1 - block : block);
      const int64_t behind = job / args.heads % a_sequence * queries;  // queries behind the job's last one
      if (job < jobs) pieces += plain::blocks_for(args.shape.max_kv - behind, kKeys);
    }
    most = std::max(most, pieces);
  }
  return most;
}

}  // namespace

void wgmma_paged_attention(Stream& stream, const PagedAttentionArgs& args, int64_t first_sequence) {
  const DType dtype = args.q.dtype;
  const auto sequences = static_cast<int>(args.shape.sequences - first_sequence);
  const int64_t sms = std::max<int64_t>(1, cuda_stream(stream).device.limits.multiprocessors);
  // A piece takes three warpgroups a third longer than two.
  const bool three = 4 * busiest(args, sequences, 192, sms) < 3 * busiest(args, sequences, 128, sms);
  const int queries = three ? 192 : 128;
  const auto blocks = static_cast<int>(plain::blocks_for(args.shape.max_query, queries)), jobs = sequences * blocks * args.heads;
  const PagedParams p{
      .queries = tensor_map(dtype, args.q.data, args.q.rows(), static_cast<int64_t>(args.heads) * args.head_dim,
                            args.q.row_stride, queries),
      .cache = kv_map(args.kv, kKeys),
      .out = args.out.data,
      .out_stride = args.out.row_stride,
      .heads = args.heads,
      .kv_heads = args.kv_heads,
      .group = args.heads / args.kv_heads,
      .blocks = blocks,
      .jobs = jobs,
      .scale_log2 = args.scale * 1.4426950408889634f,
      .query_offsets = args.query_offsets.ptr<int>(),
      .kv_lengths = args.kv_lengths.ptr<int>(),
      .block_tables = args.block_tables.ptr<int>(),
      .table_stride = args.block_tables.row_stride,
      .first_sequence = static_cast<int>(first_sequence),
      .block_shift = std::countr_zero(static_cast<unsigned>(args.kv.layout.block_size))};
  // One sequence: its jobs are known here and dealt to a persistent block a multiprocessor. Several: only the longest is known,
  // and a block a job lets the device balance them.
  const Grid grid{static_cast<unsigned>(sequences == 1 ? std::min<int64_t>(jobs, sms) : jobs)};
  dispatch_half(dtype, "paged_attention", [&](auto zero) {
    using T = decltype(zero);
    auto run = [&](auto kernel, int threads, int bytes) {
      launch_fast(stream, "wgmma_paged_attention", grid, threads, static_cast<size_t>(bytes), kernel, p);
    };
    auto choose = [&]<int kHeadDim>(std::integral_constant<int, kHeadDim>) {
      using Two = Shape<T, kHeadDim, 2>;
      using Three = Shape<T, kHeadDim, 3>;
      if (three)
        run(paged_kernel<T, kHeadDim, 3>, Three::kThreads, Three::kBytes);
      else
        run(paged_kernel<T, kHeadDim, 2>, Two::kThreads, Two::kBytes);
    };
    if (args.head_dim == 64)
      choose(std::integral_constant<int, 64>{});
    else
      choose(std::integral_constant<int, 128>{});
  });
}

}  // namespace tessera::cuda
