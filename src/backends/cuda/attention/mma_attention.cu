#include "backends/cuda/attention/attention.h"

#include <bit>
#include "backends/cuda/fast.cuh"
#include "backends/cuda/plain/kv_layout.h"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// 64 queries a block, 16 a warp, 64 keys at a time. Queries live in registers; K and V have one stage each (16 or 32 KB in
// all): V arrives while the scores are made, the next K while they are weighted.
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kQueries = 64;
constexpr int kKeys = 64;

struct FlashParams {
  const void* q = nullptr;
  void* out = nullptr;
  int64_t q_stride = 0, out_stride = 0;  ///< elements between tokens
  int heads = 0, group = 1;
  float scale_log2 = 0;  ///< scale * log2(e): the exponentials are powers of two
  // Tiles.
  int64_t tile_tokens = 0;
  int64_t key_column = 0, value_column = 0;
  // Paged.
  const int* query_offsets = nullptr;
  const int* kv_lengths = nullptr;
  const int* block_tables = nullptr;
  int64_t table_stride = 0;
  int first_sequence = 0;
  int block_shift = 0;  ///< blocks are a power of two of tokens
  KvElements kv;
};

/// Byte offset of a 16-byte piece in a tile of kHeadDim columns: the exclusive or spreads the 8 rows that ldmatrix reads
/// together over all banks.
template <int kHeadDim>
__device__ __forceinline__ uint32_t piece(int row, int chunk) {
  return static_cast<uint32_t>(row * kHeadDim * 2 + ((chunk ^ (row & 7)) * 16));
}

/// What a block works on: its queries and the keys of their sequence.
struct Span {
  int64_t query_row;   ///< of the first query of the sequence
  int queries, keys;   ///< of the sequence
  int64_t key_row;     ///< tiles: row of the first key
  const int* table;    ///< paged: its blocks
};

template <bool kPaged>
__device__ __forceinline__ Span span_of(const FlashParams& p) {
  if constexpr (kPaged) {
    const int s = p.first_sequence + static_cast<int>(blockIdx.z);
    const int begin = p.query_offsets[s];
    return {begin, p.query_offsets[s + 1] - begin, p.kv_lengths[s], 0, p.block_tables + s * p.table_stride};
  } else {
    const int64_t row = static_cast<int64_t>(blockIdx.z) * p.tile_tokens;
    return {row, static_cast<int>(p.tile_tokens), static_cast<int>(p.tile_tokens), row, nullptr};
  }
}

template <class T, int kHeadDim, bool kPaged>
__device__ __forceinline__ void load_keys(const FlashParams& p, const Span& span, int head, int key0, bool value,
                                          uint32_t to) {
  constexpr int kChunks = kHeadDim / 8;
  const int kv_head = kPaged ? head / p.group : head;
#pragma unroll
  for (int i = 0; i < kKeys * kChunks / kThreads; ++i) {
    const int index = threadIdx.x + i * kThreads, row = index / kChunks, chunk = index % kChunks;
    const int key = key0 + row;
    const bool inside = key < span.keys;
    const T* from;
    if constexpr (kPaged) {
      // KvElements::index without its divisions: this is done for every 16 bytes.
      const int block = inside ? __ldg(span.table + (key >> p.block_shift)) : 0;
      const int within = ((kv_head << p.block_shift) + (key & ((1 << p.block_shift) - 1))) * kHeadDim + chunk * 8;
      from = static_cast<const T*>(p.kv.base) + block * p.kv.block_elements + (value ? p.kv.block_elements >> 1 : 0) + within;
    } else {
      from = static_cast<const T*>(p.q) + (span.key_row + (inside ? key : 0)) * p.q_stride +
             (value ? p.value_column : p.key_column) + head * kHeadDim + chunk * 8;
    }
    copy_async(to + piece<kHeadDim>(row, chunk), from, inside);
  }
}

/// The largest and the sum over the 4 lanes that share a row.
__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

template <class T, int kHeadDim, bool kPaged>
__global__ __launch_bounds__(kThreads) void flash_kernel(FlashParams p) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int kTileBytes = kKeys * kHeadDim * 2;
  constexpr int kSteps = kHeadDim / 16;    // k steps of the scores
  constexpr int kDimTiles = kHeadDim / 8;  // accumulator tiles of the output
  const uint32_t k_tile = shared_address(shared), v_tile = k_tile + kTileBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int head = static_cast<int>(blockIdx.y);
  wait_for_previous();
  const Span span = span_of<kPaged>(p);
  // The last queries see the most keys: they start first, so that no long block comes last.
  const int query0 = (static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x)) * kQueries;
  if (query0 >= span.queries) return;

  // Queries through the K tile into registers, once.
  constexpr int kChunks = kHeadDim / 8;
#pragma unroll
  for (int i = 0; i < kQueries * kChunks / kThreads; ++i) {
    const int index = threadIdx.x + i * kThreads, row = index / kChunks, chunk = index % kChunks;
    const bool inside = query0 + row < span.queries;
    const T* from = static_cast<const T*>(p.q) + (span.query_row + (inside ? query0 + row : 0)) * p.q_stride +
                    head * kHeadDim + chunk * 8;
    copy_async(k_tile + piece<kHeadDim>(row, chunk), from, inside);
  }
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  uint32_t queries[kSteps][4];
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
    load_matrix_x4(queries[s], k_tile + piece<kHeadDim>(warp * 16 + lane % 16, s * 2 + lane / 16));
  __syncthreads();

  // Query i of the sequence sees keys [0, keys - queries + i] when causal.
  const int offset = span.keys - span.queries;
  const int last_query = min(query0 + kQueries, span.queries) - 1;
  const int visible = kPaged ? min(span.keys, offset + last_query + 1) : span.keys;
  const int tiles = (visible + kKeys - 1) / kKeys;
  float out[kDimTiles][4] = {};
  float best[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};

  load_keys<T, kHeadDim, kPaged>(p, span, head, 0, false, k_tile);
  copy_commit();
  for (int t = 0; t < tiles; ++t) {
    const int key0 = t * kKeys;
    copy_wait<0>();
    __syncthreads();  // K is here, and V is free
    load_keys<T, kHeadDim, kPaged>(p, span, head, key0, true, v_tile);
    copy_commit();

    float scores[8][4] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t b[4];
        load_matrix_x4(b, k_tile + piece<kHeadDim>(j * 16 + lane / 16 * 8 + lane % 8, s * 2 + lane / 8 % 2));
        mma<T>(scores[2 * j], queries[s], b[0], b[1]);
        mma<T>(scores[2 * j + 1], queries[s], b[2], b[3]);
      }
    __syncthreads();  // K may be overwritten
    if (t + 1 < tiles) load_keys<T, kHeadDim, kPaged>(p, span, head, key0 + kKeys, false, k_tile);
    copy_commit();

    const int row0 = query0 + warp * 16 + g;
    const int first_hidden = kPaged ? offset + query0 + warp * 16 + 1 : span.keys;  // of the warp's first row
    if (key0 + kKeys > first_hidden || key0 + kKeys > span.keys) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = key0 + j * 8 + 2 * q + i % 2;
          const int limit = kPaged ? min(span.keys, offset + row0 + i / 2 * 8 + 1) : span.keys;
          if (key >= limit) scores[j][i] = -INFINITY;
        }
    }
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = best[h];
#pragma unroll
      for (int j = 0; j < 8; ++j) m = fmaxf(m, fmaxf(scores[j][2 * h], scores[j][2 * h + 1]));
      m = quad_max(m);
      const float base = m == -INFINITY ? 0.0f : m * p.scale_log2;
      shrink[h] = exp2f(best[h] * p.scale_log2 - base);
      best[h] = m;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float e = exp2f(scores[j][2 * h + i] * p.scale_log2 - base);
          scores[j][2 * h + i] = e;
          sum += e;
        }
      total[h] = total[h] * shrink[h] + sum;
    }
#pragma unroll
    for (int d = 0; d < kDimTiles; ++d) {
      out[d][0] *= shrink[0];
      out[d][1] *= shrink[0];
      out[d][2] *= shrink[1];
      out[d][3] *= shrink[1];
    }
    copy_wait<1>();
    __syncthreads();  // V is here
#pragma unroll
    for (int s = 0; s < kKeys / 16; ++s) {
      const uint32_t a[4] = {pack2<T>(scores[2 * s][0], scores[2 * s][1]), pack2<T>(scores[2 * s][2], scores[2 * s][3]),
                             pack2<T>(scores[2 * s + 1][0], scores[2 * s + 1][1]),
                             pack2<T>(scores[2 * s + 1][2], scores[2 * s + 1][3])};
#pragma unroll
      for (int d = 0; d < kDimTiles / 2; ++d) {
        uint32_t b[4];
        load_matrix_x4_transposed(b, v_tile + piece<kHeadDim>(s * 16 + lane % 16, d * 2 + lane / 16));
        mma<T>(out[2 * d], a, b[0], b[1]);
        mma<T>(out[2 * d + 1], a, b[2], b[3]);
      }
    }
  }
  copy_wait<0>();
  let_next_start();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = quad_sum(total[h]);
    const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
    const int query = query0 + warp * 16 + h * 8 + g;
    if (query >= span.queries) continue;
    T* row = static_cast<T*>(p.out) + (span.query_row + query) * p.out_stride + head * kHeadDim;
#pragma unroll
    for (int d = 0; d < kDimTiles; ++d)
      *reinterpret_cast<uint32_t*>(row + d * 8 + 2 * q) = pack2<T>(out[d][2 * h] * inverse, out[d][2 * h + 1] * inverse);
  }
}

template <bool kPaged>
void run(Stream& stream, const char* name, DType dtype, int head_dim, Grid grid, const FlashParams& p) {
  const auto shared = static_cast<size_t>(head_dim == 64 ? shared_bytes::kMmaAttention64 : shared_bytes::kMmaAttention128);
  static_assert(shared_bytes::kMmaAttention128 == 2 * kKeys * 128 * 2 && shared_bytes::kMmaAttention64 == 2 * kKeys * 64 * 2);
  dispatch_half(dtype, name, [&](auto zero) {
    using T = decltype(zero);
    if (head_dim == 64)
      launch_fast(stream, name, grid, kThreads, shared, flash_kernel<T, 64, kPaged>, p);
    else
      launch_fast(stream, name, grid, kThreads, shared, flash_kernel<T, 128, kPaged>, p);
  });
}

constexpr float kLog2E = 1.4426950408889634f;

}  // namespace

void mma_tile_attention(Stream& stream, const TileAttentionArgs& args) {
  const int64_t width = static_cast<int64_t>(args.heads) * args.head_dim;
  const FlashParams p{.q = args.qkv.data,
                      .out = args.out.data,
                      .q_stride = args.qkv.row_stride,
                      .out_stride = args.out.row_stride,
                      .heads = args.heads,
                      .scale_log2 = args.scale * kLog2E,
                      .tile_tokens = args.tokens,
                      .key_column = width,
                      .value_column = 2 * width};
  const Grid grid{plain::blocks_for(args.tokens, kQueries), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(args.tiles)};
  run<false>(stream, "mma_tile_attention", args.qkv.dtype, args.head_dim, grid, p);
}

void mma_paged_attention(Stream& stream, const PagedAttentionArgs& args, int64_t first_sequence) {
  const FlashParams p{.q = args.q.data,
                      .out = args.out.data,
                      .q_stride = args.q.row_stride,
                      .out_stride = args.out.row_stride,
                      .heads = args.heads,
                      .group = args.heads / args.kv_heads,
                      .scale_log2 = args.scale * kLog2E,
                      .query_offsets = args.query_offsets.ptr<int>(),
                      .kv_lengths = args.kv_lengths.ptr<int>(),
                      .block_tables = args.block_tables.ptr<int>(),
                      .table_stride = args.block_tables.row_stride,
                      .first_sequence = static_cast<int>(first_sequence),
                      .block_shift = std::countr_zero(static_cast<unsigned>(args.kv.layout.block_size)),
                      .kv = kv_elements(args.kv)};
  const Grid grid{plain::blocks_for(args.shape.max_query, kQueries), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(args.shape.sequences - first_sequence)};
  run<true>(stream, "mma_paged_attention", args.q.dtype, args.head_dim, grid, p);
}

}  // namespace tessera::cuda
