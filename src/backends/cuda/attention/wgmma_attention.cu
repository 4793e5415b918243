#include <algorithm>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/plain_row.cuh"
#include "backends/cuda/attention/wgmma_extra_row.cuh"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// Bidirectional attention inside tiles, head dim 64, one persistent block a multiprocessor. 208 keys a piece: the 1025 tokens
// of a tile are 4.93 pieces, so 1.5 % of the scores are padding (with 128: 12 %). A row that 128 leave over (the 1025th) would
// cost a whole job: blocks with a job less than others make it (wgmma_extra_row.cuh).
constexpr int kHeadDim = 64;
template <class T>
using Shape = FlashShape<T, kHeadDim, 208, 3, 2>;
static_assert(Shape<__half>::kBytes == shared_bytes::kWgmmaAttention64);

/// Divides numbers below 2^32 / `by` by a multiplication.
struct Divisor {
  explicit Divisor(int by) : by(by), multiplier(static_cast<uint32_t>((uint64_t{1} << 32) / static_cast<uint32_t>(by) + 1)) {}
  int by;
  uint32_t multiplier;  ///< of no use where `by` is 1
#ifdef TESSERA_WGMMA_HERE
  __device__ int quotient(int n) const { return by == 1 ? n : static_cast<int>(__umulhi(static_cast<uint32_t>(n), multiplier)); }
#endif
};

struct TileParams {
  CUtensorMap queries, keys;  ///< of the packed rows, boxes of 128 and of 208 rows
  const void* qkv;
  void* out;
  int64_t stride, out_stride;
  int tiles, tokens, pieces;
  Divisor heads;
  Divisor blocks;  ///< jobs a head and tile
  bool leftover;  ///< a row a head and tile beyond the jobs
  int first_with_leftover;  ///< block that makes such rows, as all behind it do
  float scale_log2;
};

#ifdef TESSERA_WGMMA_HERE

template <class S>
struct TileSource {
  const TileParams& p;

  __device__ FlashJob job(int index) const {
    if (index >= p.tiles * p.heads.by * p.blocks.by) return {};
    const int pair = p.blocks.quotient(index);
    return rows_of(pair, (index - pair * p.blocks.by) * S::kQueries, index);
  }
  __device__ FlashJob first() const { return job(static_cast<int>(blockIdx.x)); }
  __device__ FlashJob next(const FlashJob& last) const { return job(last.index + static_cast<int>(gridDim.x)); }

  /// The row that all jobs of a head and tile leave over.
  __device__ FlashJob leftover(int pair) const {
    if (!p.leftover || pair >= p.tiles * p.heads.by) return {};
    return rows_of(pair, p.tokens - 1, pair);
  }
  __device__ FlashJob first_leftover() const {
    const int place = static_cast<int>(blockIdx.x) - p.first_with_leftover;
    return place < 0 ? FlashJob{} : leftover(place);
  }
  __device__ FlashJob next_leftover(const FlashJob& last) const { return leftover(last.index + static_cast<int>(gridDim.x) - p.first_with_leftover); }

  __device__ void load_queries(const FlashJob& job, uint32_t to, uint32_t barrier) const {
    if (threadIdx.x % 32 != 0) return;
    barrier_expect(barrier, S::kQueryBytes);
    copy_box(to, &p.queries, job.head * kHeadDim, static_cast<int>(job.row), barrier);
  }
  __device__ void load_keys(const FlashJob& job, int piece, bool value, uint32_t to, uint32_t barrier) const {
    if (threadIdx.x % 32 != 0) return;
    barrier_expect(barrier, S::kKeyBytes);
    copy_box(to, &p.keys, ((value ? 2 : 1) * p.heads.by + job.head) * kHeadDim, static_cast<int>(tile_row(job)) + piece * S::kKeys, barrier);
  }

  /// Run by a whole warp: row `row` of a job once more, from memory.
  __device__ void remake(const FlashJob& job, int row, typename S::T* out, int64_t out_stride, float scale_log2) const {
    using T = typename S::T;
    const int64_t width = static_cast<int64_t>(p.heads.by) * kHeadDim;
    const T* qkv = static_cast<const T*>(p.qkv) + job.head * kHeadDim;
    const T* keys = qkv + tile_row(job) * p.stride + width;
    plain_row<kHeadDim>(qkv + (job.row + row) * p.stride, keys, keys + width, p.stride, job.keys, scale_log2,
                        out + (job.row + row) * out_stride + job.head * kHeadDim);
  }

 private:
  /// A job of the rows of a head and tile from `query0` on.
  __device__ FlashJob rows_of(int pair, int query0, int index) const {
    const int tile = p.heads.quotient(pair);
    return {.row = tile * p.tokens + query0,
            .rows = p.tokens - query0,
            .head = pair - tile * p.heads.by,
            .keys = p.tokens,
            .visible = p.tokens,
            .pieces = p.pieces,
            .index = index};
  }
  /// The first row of a job's tile.
  __device__ int64_t tile_row(const FlashJob& job) const { return static_cast<int>(job.row) / p.tokens * static_cast<int64_t>(p.tokens); }
};

#endif

#ifdef TESSERA_WGMMA_HERE

/// By all warpgroups that compute, their jobs done: the rows that jobs left over.
template <class S>
__device__ __forceinline__ void make_leftover(const TileSource<S>& source, const FlashMemory<S>& memory, unsigned char* raw, Ring<S::kStages> ring) {
  using T = typename S::T;
  const TileParams& p = source.p;
  FlashJob row = source.first_leftover();
  if (row.pieces == 0) return;
  auto place = [&](const FlashJob& of, int64_t stride) { return of.row * stride + of.head * kHeadDim; };
  const T* q = static_cast<const T*>(p.qkv);
  ExtraRow<S> extra(memory, raw, ring, p.scale_log2);
  extra.ask(q + place(row, p.stride));
  while (row.pieces > 0) {
    const FlashJob next = source.next_leftover(row);
    extra.run(row, next.pieces > 0 ? q + place(next, p.stride) : nullptr, static_cast<T*>(p.out) + place(row, p.out_stride));
    row = next;
  }
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
  if (group == S::kGroups) {
    give_registers<24>();
    wait_for_previous();
    if (threadIdx.x / 32 % 4 == 0) {
      FlashProducer producer(source, memory);
      for (FlashJob job = source.first(); job.pieces > 0; job = source.next(job)) producer.bring(job);
      for (FlashJob row = source.first_leftover(); row.pieces > 0; row = source.next_leftover(row)) producer.bring_keys(row);
    }
  } else {
    take_registers<240>();
    wait_for_previous();
    FlashGroup<S, false> worker(memory, group);
    worker.run_ahead(source, static_cast<T*>(p.out), p.out_stride, p.scale_log2);
    worker.remake_outgrown(source, static_cast<T*>(p.out), p.out_stride, p.scale_log2);
    make_leftover(source, memory, raw + (base - shared_address(raw)), worker.place());
  }
  let_next_start();
#endif
}

/// The first of `grid` blocks that makes rows which jobs leave over, of `pairs` heads and tiles: those with a job less than others, if
/// these are so many that they end with them, else all.
int first_with_leftover(int jobs, int grid, int pairs) {
  constexpr int kPairsAJob = 4;  // in its time
  const int idle = (grid - jobs % grid) % grid;
  return pairs <= kPairsAJob * idle ? grid - idle : 0;
}

}  // namespace

void wgmma_tile_attention(Stream& stream, const TileAttentionArgs& args) {
  const DType dtype = args.qkv.dtype;
  const int64_t rows = args.tiles * args.tokens, columns = 3 * static_cast<int64_t>(args.heads) * kHeadDim;
  constexpr int kQueries = Shape<__half>::kQueries, kKeys = Shape<__half>::kKeys;
  const int tokens = static_cast<int>(args.tokens);
  const bool leftover = tokens > kQueries && tokens % kQueries == 1;
  TileParams p{.queries = tensor_map(dtype, args.qkv.data, rows, columns, args.qkv.row_stride, kQueries),
                     .keys = tensor_map(dtype, args.qkv.data, rows, columns, args.qkv.row_stride, kKeys),
                     .qkv = args.qkv.data,
                     .out = args.out.data,
                     .stride = args.qkv.row_stride,
                     .out_stride = args.out.row_stride,
                     .tiles = static_cast<int>(args.tiles),
                     .tokens = tokens,
                     .pieces = (tokens + kKeys - 1) / kKeys,
                     .heads = Divisor(args.heads),
                     .blocks = Divisor((tokens - leftover + kQueries - 1) / kQueries),
                     .leftover = leftover,
                     .first_with_leftover = 0,
                     .scale_log2 = args.scale * 1.4426950408889634f};
  const int pairs = p.tiles * p.heads.by, jobs = pairs * p.blocks.by;
  TESSERA_CHECK(int64_t{jobs} * std::max(p.heads.by, p.blocks.by) < int64_t{1} << 32, "[tile_attention] " + std::to_string(jobs) + " jobs are more than can be told apart");
  const int64_t sms = std::max<int64_t>(1, cuda_stream(stream).device.limits.multiprocessors);
  const auto blocks = static_cast<int>(std::min<int64_t>(jobs + (leftover ? pairs : 0), sms));
  p.first_with_leftover = first_with_leftover(jobs, blocks, pairs);
  const Grid grid{static_cast<unsigned>(blocks)};
  dispatch_half(dtype, "tile_attention", [&](auto zero) {
    using T = decltype(zero);
    launch_fast(stream, "wgmma_tile_attention", grid, Shape<T>::kThreads, Shape<T>::kBytes, tile_kernel<T>, p);
  });
}

}  // namespace tessera::cuda
