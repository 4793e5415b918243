#include "ops/attention.h"

#include "backends/cuda/plain/kv_layout.h"
#include "backends/cuda/plain/plain.h"
#include "backends/cuda/plain/portable.h"

namespace tessera::cuda::plain {
namespace {

// Eight queries a block against 32 keys at a time: one score a thread, and 8 + 32 rows of up to 256 dimensions in f32 with
// the scores stay under 48 KB. Nothing here knows what a warp is.
constexpr int kThreads = 256;
constexpr int kQueries = 8;
constexpr int kKeys = 32;
constexpr int kMaxHeadDim = 256;
constexpr int kDimsPerThread = kMaxHeadDim / kKeys;

struct AttentionParams {
  Elements q;    ///< rows of queries, heads side by side
  Elements out;
  int head_dim, group;  ///< group: query heads that share a key head
  float scale;
  // Tiles: keys are columns of the packed rows.
  int64_t tile_tokens = 0;
  int64_t key_column = 0, value_column = 0;
  // Paged: keys lie in blocks.
  const int* query_offsets = nullptr;
  const int* kv_lengths = nullptr;
  const int* block_tables = nullptr;
  int64_t table_stride = 0;
  KvElements kv;
};

/// One block's work: queries [first, first + count) of one sequence, `keys` keys; query i sees `visible + i` of them
/// when causal, else all.
struct Work {
  int64_t first_row, count, keys, visible, sequence, first_key_row;
  bool causal;
};

TESSERA_DEVICE Work tile_work(const AttentionParams& p) {
  const int64_t q0 = static_cast<int64_t>(block_x()) * kQueries;
  const int64_t base = static_cast<int64_t>(block_z()) * p.tile_tokens;
  const int64_t left = p.tile_tokens - q0;
  return {base + q0, left < kQueries ? left : kQueries, p.tile_tokens, 0, 0, base, false};
}

TESSERA_DEVICE Work paged_work(const AttentionParams& p) {
  const int64_t s = block_z();
  const int64_t q0 = static_cast<int64_t>(block_x()) * kQueries;
  const int64_t begin = p.query_offsets[s], queries = p.query_offsets[s + 1] - begin;
  int64_t count = queries - q0;
  if (count > kQueries) count = kQueries;
  const int64_t visible = p.kv_lengths[s] - queries + q0 + 1;
  return {begin + q0, count, visible + count - 1, visible, s, 0, true};
}

/// Rows of keys or values [k0, k0 + 32) into shared memory, zeros past the end.
TESSERA_DEVICE void load_rows(const AttentionParams& p, const Work& w, int64_t k0, int head, bool value, float* rows) {
  const int kv_head = head / p.group;
  for (int i = thread_id(); i < kKeys * p.head_dim; i += kThreads) {
    const int r = i / p.head_dim, d = i % p.head_dim;
    const int64_t key = k0 + r;
    float v = 0;
    if (key < w.keys) {
      if (p.block_tables) {
        const int64_t block = p.block_tables[w.sequence * p.table_stride + key / p.kv.block_size];
        const int64_t at = p.kv.index(block * p.kv.block_size + key % p.kv.block_size, kv_head, value);
        v = load_element(p.kv.base, p.kv.dtype, at + d);
      } else {
        v = p.q.get(w.first_key_row + key,
                    (value ? p.value_column : p.key_column) + static_cast<int64_t>(head) * p.head_dim + d);
      }
    }
    rows[r * (p.head_dim + 1) + d] = v;
  }
}

TESSERA_KERNEL(kThreads) attention_kernel(AttentionParams p) {
  const Work w = p.block_tables ? paged_work(p) : tile_work(p);
  if (w.count <= 0) return;  // the same for the whole block
  float* q = static_cast<float*>(dynamic_shared());
  float* rows = q + kQueries * p.head_dim;
  float* scores = rows + kKeys * (p.head_dim + 1);
  const int head = block_y(), query = thread_id() / kKeys, lane = thread_id() % kKeys;
  for (int i = thread_id(); i < kQueries * p.head_dim; i += kThreads) {
    const int r = i / p.head_dim, d = i % p.head_dim;
    q[i] = r < w.count ? p.q.get(w.first_row + r, static_cast<int64_t>(head) * p.head_dim + d) * p.scale : 0.0f;
  }
  float best = -INFINITY, total = 0, sum[kDimsPerThread] = {};
  for (int64_t k0 = 0; k0 < w.keys; k0 += kKeys) {
    load_rows(p, w, k0, head, false, rows);
    barrier();
    float score = -INFINITY;
    if (k0 + lane < w.keys && (!w.causal || k0 + lane < w.visible + query)) {
      score = 0;
      for (int d = 0; d < p.head_dim; ++d) score += q[query * p.head_dim + d] * rows[lane * (p.head_dim + 1) + d];
    }
    scores[thread_id()] = score;
    barrier();
    float new_best = best;
    for (int j = 0; j < kKeys; ++j) {
      const float s = scores[query * kKeys + j];
      new_best = s > new_best ? s : new_best;
    }
    const float shrink = best == -INFINITY ? 0.0f : expf(best - new_best);
    total *= shrink;
    for (float& s : sum) s *= shrink;
    best = new_best;
    load_rows(p, w, k0, head, true, rows);
    barrier();
    for (int j = 0; j < kKeys; ++j) {
      const float s = scores[query * kKeys + j];
      const float weight = s == -INFINITY ? 0.0f : expf(s - best);
      total += weight;
      for (int i = 0; i * kKeys + lane < p.head_dim; ++i) sum[i] += weight * rows[j * (p.head_dim + 1) + i * kKeys + lane];
    }
    barrier();
  }
  if (query >= w.count) return;
  for (int i = 0; i * kKeys + lane < p.head_dim; ++i)
    p.out.set(w.first_row + query, static_cast<int64_t>(head) * p.head_dim + i * kKeys + lane,
              total > 0 ? sum[i] / total : 0.0f);
}

size_t shared_size(int head_dim) {
  return sizeof(float) * static_cast<size_t>(kQueries * head_dim + kKeys * (head_dim + 1) + kQueries * kKeys);
}

struct CacheParams {
  Elements qkv;
  const float* q_norm;
  const float* k_norm;
  const float* cos_sin;
  int64_t cos_sin_stride;
  const int* slots;
  int heads, kv_heads, head_dim;
  float eps;
  KvElements kv;
};

constexpr int kCacheThreads = 128;

/// One block a token and head of q | k | v.
TESSERA_KERNEL(kCacheThreads) cache_kernel(CacheParams p) {
  float* scratch = static_cast<float*>(dynamic_shared());
  const int64_t token = block_x();
  const int head = block_y(), half = p.head_dim / 2;
  const int64_t column = static_cast<int64_t>(head) * p.head_dim;
  const int64_t slot = p.slots[token];
  const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;
  if (is_v) {
    if (slot < 0) return;
    const int64_t to = p.kv.index(slot, head - p.heads - p.kv_heads, true);
    for (int d = thread_id(); d < p.head_dim; d += kCacheThreads)
      store_element(p.kv.base, p.kv.dtype, to + d, p.qkv.get(token, column + d));
    return;
  }
  const float* weight = is_q ? p.q_norm : p.k_norm;
  float inverse = 1;
  if (weight) {
    float squares = 0;
    for (int d = thread_id(); d < p.head_dim; d += kCacheThreads) {
      const float v = p.qkv.get(token, column + d);
      squares += v * v;
    }
    inverse = 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(p.head_dim) + p.eps);
  }
  for (int d = thread_id(); d < half; d += kCacheThreads) {
    const float c = p.cos_sin[token * p.cos_sin_stride + d], s = p.cos_sin[token * p.cos_sin_stride + half + d];
    float low = p.qkv.get(token, column + d) * inverse, high = p.qkv.get(token, column + half + d) * inverse;
    if (weight) {
      low *= weight[d];
      high *= weight[half + d];
    }
    const float a = low * c - high * s, b = high * c + low * s;
    if (is_q) {
      p.qkv.set(token, column + d, a);
      p.qkv.set(token, column + half + d, b);
    } else if (slot >= 0) {
      const int64_t to = p.kv.index(slot, head - p.heads, false);
      store_element(p.kv.base, p.kv.dtype, to + d, a);
      store_element(p.kv.base, p.kv.dtype, to + half + d, b);
    }
  }
}

}  // namespace

void tile_attention(Stream& stream, const TileAttentionArgs& args) {
  TESSERA_CHECK(args.head_dim <= kMaxHeadDim, "[tile_attention] head_dim " + std::to_string(args.head_dim) + " > 256");
  const int64_t width = static_cast<int64_t>(args.heads) * args.head_dim;
  const AttentionParams p{.q = elements(args.qkv),
                          .out = elements(args.out),
                          .head_dim = args.head_dim,
                          .group = 1,
                          .scale = args.scale,
                          .tile_tokens = args.tokens,
                          .key_column = width,
                          .value_column = 2 * width};
  const Grid grid{blocks_for(args.tokens, kQueries), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(args.tiles)};
  launch(stream, "plain_tile_attention", grid, kThreads, shared_size(args.head_dim), attention_kernel, p);
}

void paged_attention(Stream& stream, const PagedAttentionArgs& args) {
  TESSERA_CHECK(args.head_dim <= kMaxHeadDim, "[paged_attention] head_dim " + std::to_string(args.head_dim) + " > 256");
  const AttentionParams p{.q = elements(args.q),
                          .out = elements(args.out),
                          .head_dim = args.head_dim,
                          .group = args.heads / args.kv_heads,
                          .scale = args.scale,
                          .query_offsets = args.query_offsets.ptr<int>(),
                          .kv_lengths = args.kv_lengths.ptr<int>(),
                          .block_tables = args.block_tables.ptr<int>(),
                          .table_stride = args.block_tables.row_stride,
                          .kv = kv_elements(args.kv)};
  const Grid grid{blocks_for(args.shape.max_query, kQueries), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(args.shape.sequences)};
  launch(stream, "plain_paged_attention", grid, kThreads, shared_size(args.head_dim), attention_kernel, p);
}

void qkv_to_cache(Stream& stream, const QkvToCacheArgs& args) {
  const CacheParams p{.qkv = elements(args.qkv),
                      .q_norm = args.q_norm.ptr<float>(),
                      .k_norm = args.k_norm.ptr<float>(),
                      .cos_sin = args.cos_sin.ptr<float>(),
                      .cos_sin_stride = args.cos_sin.row_stride,
                      .slots = args.slots.ptr<int>(),
                      .heads = args.heads,
                      .kv_heads = args.kv_heads,
                      .head_dim = args.head_dim,
                      .eps = args.norm_eps,
                      .kv = kv_elements(args.kv)};
  const Grid grid{static_cast<unsigned>(args.qkv.rows()), static_cast<unsigned>(args.heads + 2 * args.kv_heads)};
  launch(stream, "plain_qkv_to_cache", grid, kCacheThreads, 64 * sizeof(float), cache_kernel, p);
}

}  // namespace tessera::cuda::plain
