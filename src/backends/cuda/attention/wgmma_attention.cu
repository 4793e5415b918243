#include <algorithm>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/wgmma_extra_rows.cuh"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// Bidirectional attention inside tiles, head dim 64, one persistent block a multiprocessor. 208 keys a piece: the 1025 tokens
// of a tile are 4.93 pieces, so 1.5 % of the scores are padding (with 128: 12 %). A row that 128 leave over (the 1025th) would
// cost a whole job: it rides along with one of its head's (wgmma_extra_rows.cuh).
constexpr int kHeadDim = 64;
template <class T>
using Shape = FlashShape<T, kHeadDim, 208, 3, 2>;
template <class T>
constexpr int kBytes = Shape<T>::kBytes + kExtraBytes<Shape<T>>;
static_assert(kBytes<__half> == shared_bytes::kWgmmaAttention64);

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
  /// One job of each pair carries the rows beyond all jobs, in turns, so that no block has more of them than others.
  __device__ bool carries(const FlashJob& job) const { return job.index % p.blocks == job.index / p.blocks % p.blocks; }
  __device__ int64_t extra_place(const FlashJob& job, int64_t stride) const {
    const int pair = job.index / p.blocks;
    return (static_cast<int64_t>(pair / p.heads + 1) * p.tokens - p.leftover) * stride + pair % p.heads * kHeadDim;
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
  if (threadIdx.x == 0) memory.init(p.leftover > 0 ? kExtraWarps : 0);
  __syncthreads();
  if (group == S::kGroups) {
    give_registers<72>();
    wait_for_previous();
    if (threadIdx.x / 32 % 4 == 0) {
      flash_produce(source, memory);
    } else if (p.leftover > 0) {
      float* meeting = reinterpret_cast<float*>(raw + (base - shared_address(raw)) + S::kBytes - 1024);
      ExtraRows<S> rows(memory, meeting, p.leftover, p.scale_log2);
      rows.run(source, static_cast<const T*>(p.qkv), p.stride, static_cast<T*>(p.out), p.out_stride);
    }
  } else {
    take_registers<216>();
    wait_for_previous();
    FlashGroup<S, false> worker(memory, group);
    worker.run_ahead(source, static_cast<T*>(p.out), p.out_stride, p.scale_log2);
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
  const int leftover = tokens > kQueries && beyond <= kMostExtraRows ? beyond : 0;
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
  const int jobs = p.tiles * p.heads * p.blocks;
  const Grid grid{static_cast<unsigned>(std::min<int64_t>(jobs, std::max<int64_t>(1, cuda_stream(stream).device.limits.multiprocessors)))};
  dispatch_half(dtype, "tile_attention", [&](auto zero) {
    using T = decltype(zero);
    launch_fast(stream, "wgmma_tile_attention", grid, Shape<T>::kThreads, kBytes<T>, tile_kernel<T>, p);
  });
}

}  // namespace tessera::cuda
