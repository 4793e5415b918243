#include "backends/cuda/attention/attention.h"

#include <bit>
#include "backends/cuda/fast.cuh"
#include "backends/cuda/plain/kv_layout.h"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// 64 queries a block, 16 a warp, 64 keys at a time. Queries live in registers; K has two stages and V one (24 or 48 KB in
// all): V arrives while the scores are made, the next K all the while.
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kWarpQueries = 16;
constexpr int kQueries = kWarps * kWarpQueries;
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

/// Brings kRows rows to a tile at `to`: a thread four pieces apart of each 32nd row, so that an address serves all of them.
/// `row_of(row, turn)`: where it begins, or null for zeros; a thread's rows come in turns.
template <class T, int kHeadDim, int kRows, class RowOf>
__device__ __forceinline__ void load_rows(uint32_t to, const void* readable, RowOf row_of) {
  const int first = static_cast<int>(threadIdx.x) / 4, chunk = static_cast<int>(threadIdx.x) % 4;
  const uint32_t place = piece<kHeadDim>(first, chunk);
#pragma unroll
  for (int i = 0; i < kRows; i += kThreads / 4) {
    const T* row = row_of(first + i, i / (kThreads / 4));
    const T* from = row ? row + chunk * 8 : static_cast<const T*>(readable);
#pragma unroll
    for (int j = 0; j < kHeadDim / 32; ++j)
      copy_async(to + (place ^ static_cast<uint32_t>(j % 2 * 64)) + static_cast<uint32_t>(j / 2 * 128 + i * kHeadDim * 2),
                 from + j * 32, row != nullptr);
  }
}

/// Which blocks of the cache a thread's rows of a tile of keys lie in. Asked for a tile ahead of its copies: a load that is
/// needed at once waits beside the copies handed over just before it.
struct Entries {
  int of[kKeys / (kThreads / 4)];
};
template <bool kPaged>
__device__ __forceinline__ Entries entries_of(const FlashParams& p, const Span& span, int key0) {
  Entries entries{};
  if constexpr (kPaged) {
#pragma unroll
    for (int turn = 0; turn < kKeys / (kThreads / 4); ++turn) {
      const int key = key0 + turn * (kThreads / 4) + static_cast<int>(threadIdx.x) / 4;
      entries.of[turn] = __ldg(span.table + (min(key, span.keys - 1) >> p.block_shift));
    }
  }
  return entries;
}

template <class T, int kHeadDim, bool kPaged>
__device__ __forceinline__ void load_keys(const FlashParams& p, const Span& span, const Entries& entries, int head, int key0, bool value,
                                          uint32_t to) {
  load_rows<T, kHeadDim, kKeys>(to, p.q, [&](int row, int turn) -> const T* {
    const int key = key0 + row;
    if constexpr (kPaged) {
      // KvElements::index without its divisions.
      const int within = (((head / p.group) << p.block_shift) + (key & ((1 << p.block_shift) - 1))) * kHeadDim;
      const T* from = static_cast<const T*>(p.kv.base) + static_cast<int64_t>(entries.of[turn]) * static_cast<int>(p.kv.block_elements) +
                      (value ? static_cast<int>(p.kv.block_elements) >> 1 : 0) + within;
      return key < span.keys ? from : nullptr;
    } else {
      const T* from = static_cast<const T*>(p.q) + (span.key_row + key) * p.q_stride + (value ? p.value_column : p.key_column) + head * kHeadDim;
      return key < span.keys ? from : nullptr;
    }
  });
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

/// A warp's queries: a lane has rows g and g + 8.
template <class T, int kHeadDim>
struct WarpQueries {
  static constexpr int kSteps = kHeadDim / 16;    ///< k steps of the scores
  static constexpr int kDimTiles = kHeadDim / 8;  ///< accumulator tiles of the output

  uint32_t queries[kSteps][4];
  float scores[kKeys / 8][4];
  float out[kDimTiles][4] = {};
  float best[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};

  /// Hides keys from `first_limit` on to row g, from `second_limit` on to row g + 8. `key` is the lane's first.
  __device__ __forceinline__ void hide(int key, int first_limit, int second_limit) {
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (key + j * 8 + i % 2 >= (i < 2 ? first_limit : second_limit)) scores[j][i] = -INFINITY;
  }

  /// Scores become weights, relative to the largest so far; what was summed relative to an earlier one shrinks.
  __device__ __forceinline__ void weigh(float scale_log2) {
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = best[h];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) m = fmaxf(m, fmaxf(scores[j][2 * h], scores[j][2 * h + 1]));
      m = quad_max(m);
      const float base = m == -INFINITY ? 0.0f : m * scale_log2;
      shrink[h] = fast_exp2(fmaf(best[h], scale_log2, -base));
      best[h] = m;
      float sum[2] = {0, 0};
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          scores[j][2 * h + i] = fast_exp2(fmaf(scores[j][2 * h + i], scale_log2, -base));
          sum[i] += scores[j][2 * h + i];
        }
      total[h] = total[h] * shrink[h] + (sum[0] + sum[1]);
    }
#pragma unroll
    for (int d = 0; d < kDimTiles; ++d)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[d][i] *= shrink[i / 2];
  }

  /// The weights of keys 16 s to 16 s + 15 as an operand.
  __device__ __forceinline__ void weights(int s, uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = pack2<T>(scores[2 * s + i / 2][i % 2 * 2], scores[2 * s + i / 2][i % 2 * 2 + 1]);
  }
};

template <class T, int kHeadDim, bool kPaged>
__global__ __launch_bounds__(kThreads, kHeadDim == 64 ? 4 : 3) void flash_kernel(const __grid_constant__ FlashParams p) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int kTileBytes = kKeys * kHeadDim * 2;
  using Queries = WarpQueries<T, kHeadDim>;
  const uint32_t k_tile = shared_address(shared), v_tile = k_tile + 2 * kTileBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int head = static_cast<int>(blockIdx.y);
  wait_for_previous();
  const Span span = span_of<kPaged>(p);
  // The last queries see the most keys: they start first, so that no long block comes last.
  const int query0 = (static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x)) * kQueries;
  if (query0 >= span.queries) return;

  // Queries through the stages of K into registers, once.
  static_assert(kQueries <= 2 * kKeys);
  load_rows<T, kHeadDim, kQueries>(k_tile, p.q, [&](int row, int) -> const T* {
    if (query0 + row >= span.queries) return nullptr;
    return static_cast<const T*>(p.q) + (span.query_row + query0 + row) * p.q_stride + head * kHeadDim;
  });
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  Queries rows;
#pragma unroll
  for (int s = 0; s < Queries::kSteps; ++s)
    load_matrix_x4(rows.queries[s], k_tile + piece<kHeadDim>(warp * kWarpQueries + lane % 16, s * 2 + lane / 16));
  __syncthreads();

  // Query i of the sequence sees keys [0, keys - queries + i] when causal.
  const int offset = span.keys - span.queries;
  const int last_query = min(query0 + kQueries, span.queries) - 1;
  const int visible = kPaged ? min(span.keys, offset + last_query + 1) : span.keys;
  const int tiles = (visible + kKeys - 1) / kKeys;
  const int first_query = query0 + warp * kWarpQueries;
  const int first_hidden = kPaged ? min(offset + first_query + 1, span.keys) : span.keys;  // to the warp's first row
  const bool works = first_query < span.queries;  // a warp without queries helps with the copies

  Entries entries = entries_of<kPaged>(p, span, 0), next_entries = entries_of<kPaged>(p, span, kKeys);
  load_keys<T, kHeadDim, kPaged>(p, span, entries, head, 0, false, k_tile);
  copy_commit();
#pragma unroll 1
  for (int t = 0; t < tiles; ++t) {
    const int key0 = t * kKeys;
    const uint32_t k_stage = k_tile + static_cast<uint32_t>(t % 2) * kTileBytes;
    copy_wait<0>();
    __syncthreads();  // K is here, and V and the other K are free
    load_keys<T, kHeadDim, kPaged>(p, span, entries, head, key0, true, v_tile);
    copy_commit();
    if (t + 1 < tiles)
      load_keys<T, kHeadDim, kPaged>(p, span, next_entries, head, key0 + kKeys, false, k_tile + static_cast<uint32_t>(1 - t % 2) * kTileBytes);
    copy_commit();
    entries = next_entries;
    next_entries = entries_of<kPaged>(p, span, key0 + 2 * kKeys);

    if (works) {
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) rows.scores[j][i] = 0;
#pragma unroll
      for (int s = 0; s < Queries::kSteps; ++s)
#pragma unroll
        for (int j = 0; j < kKeys / 16; ++j) {
          uint32_t b[4];
          load_matrix_x4(b, k_stage + piece<kHeadDim>(j * 16 + lane / 16 * 8 + lane % 8, s * 2 + lane / 8 % 2));
          mma<T>(rows.scores[2 * j], rows.queries[s], b[0], b[1]);
          mma<T>(rows.scores[2 * j + 1], rows.queries[s], b[2], b[3]);
        }
      if (key0 + kKeys > first_hidden) {
        const int limit = kPaged ? offset + first_query + g + 1 : span.keys;
        rows.hide(key0 + 2 * q, min(span.keys, limit), min(span.keys, kPaged ? limit + 8 : limit));
      }
      rows.weigh(p.scale_log2);
    }
    copy_wait<1>();
    __syncthreads();  // V is here
    if (works) {
#pragma unroll
      for (int s = 0; s < kKeys / 16; ++s) {
        uint32_t a[4];
        rows.weights(s, a);
#pragma unroll
        for (int d = 0; d < Queries::kDimTiles / 2; ++d) {
          uint32_t b[4];
          load_matrix_x4_transposed(b, v_tile + piece<kHeadDim>(s * 16 + lane % 16, d * 2 + lane / 16));
          mma<T>(rows.out[2 * d], a, b[0], b[1]);
          mma<T>(rows.out[2 * d + 1], a, b[2], b[3]);
        }
      }
    }
  }
  copy_wait<0>();
  let_next_start();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = quad_sum(rows.total[h]);
    const float inverse = sum > 0 ? fast_reciprocal(sum) : 0.0f;
    const int query = first_query + h * 8 + g;
    if (query >= span.queries) continue;
    T* row = static_cast<T*>(p.out) + (span.query_row + query) * p.out_stride + head * kHeadDim;
#pragma unroll
    for (int d = 0; d < Queries::kDimTiles; ++d)
      *reinterpret_cast<uint32_t*>(row + d * 8 + 2 * q) = pack2<T>(rows.out[d][2 * h] * inverse, rows.out[d][2 * h + 1] * inverse);
  }
}

template <bool kPaged>
void run(Stream& stream, const char* name, DType dtype, int head_dim, int64_t queries, int64_t sequences, const FlashParams& p) {
  const auto shared = static_cast<size_t>(head_dim == 64 ? shared_bytes::kMmaAttention64 : shared_bytes::kMmaAttention128);
  static_assert(shared_bytes::kMmaAttention128 == 3 * kKeys * 128 * 2 && shared_bytes::kMmaAttention64 == 3 * kKeys * 64 * 2);
  const Grid grid{plain::blocks_for(queries, kQueries), static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(sequences)};
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
  run<false>(stream, "mma_tile_attention", args.qkv.dtype, args.head_dim, args.tokens, args.tiles, p);
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
  run<true>(stream, "mma_paged_attention", args.q.dtype, args.head_dim, args.shape.max_query, args.shape.sequences - first_sequence, p);
}

}  // namespace tessera::cuda
