#include <algorithm>
#include <bit>

#include "backends/cuda/attention/attention.h"
#include "backends/cuda/fast.cuh"
#include "backends/cuda/plain/kv_layout.h"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/sizing.h"

namespace tessera::cuda {
namespace {

// A block serves one sequence, one key head and one split of its keys; the query heads that share the key head are the
// rows of mma.sync (16 at most), so each key is read once for all of them. Four warps take 16 keys in turns. Neither
// product minds in which order its inner dimension is numbered, so every lane loads whole 16-byte pieces of the cache
// straight into its operands: no shared memory before the warps' results meet.
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kKeys = 16;
constexpr int kRows = 16;

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
  float* partial;  ///< [sequences, heads, splits, head_dim + 2]: weighted sum, maximum, total
  int heads;
};

template <class T, int kHeadDim>
__global__ __launch_bounds__(kThreads) void decode_kernel(DecodeParams p) {
  constexpr int kPieces = kHeadDim / 32;  // a key's 16-byte loads of a lane: 4 lanes share a row
  constexpr int kHalves = kHeadDim / 64;  // a value's: 8 lanes share a row
  extern __shared__ __align__(16) float meeting[];  // [warps][16][head_dim], then [warps][16][2]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int split = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y), s = static_cast<int>(blockIdx.z);
  wait_for_previous();
  const int64_t token = p.query_offsets[s];
  if (p.query_offsets[s + 1] == token) return;  // a surplus sequence
  const int keys = p.kv_lengths[s];
  const int groups = (keys + kKeys - 1) / kKeys;
  const int per_split = (groups + p.splits - 1) / p.splits;
  const int begin = split * per_split, end = min(groups, begin + per_split);

  // Step 2c + e of the inner dimension holds, in lane q, dimensions 32c + 8q + 4e .. + 3.
  uint32_t queries[kPieces][2][4];
  const T* q_row = static_cast<const T*>(p.q) + token * p.q_stride + static_cast<int64_t>(kv_head) * p.group * kHeadDim;
#pragma unroll
  for (int c = 0; c < kPieces; ++c) {
    const uint4 zero = make_uint4(0, 0, 0, 0);
    const uint4 low = g < p.group ? *reinterpret_cast<const uint4*>(q_row + g * kHeadDim + c * 32 + q * 8) : zero;
    const uint4 high = g + 8 < p.group ? *reinterpret_cast<const uint4*>(q_row + (g + 8) * kHeadDim + c * 32 + q * 8) : zero;
    const uint32_t l[4] = {low.x, low.y, low.z, low.w}, h[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      queries[c][e][0] = l[2 * e];
      queries[c][e][1] = h[2 * e];
      queries[c][e][2] = l[2 * e + 1];
      queries[c][e][3] = h[2 * e + 1];
    }
  }
  const int* table = p.block_tables + s * p.table_stride;
  const T* cache = static_cast<const T*>(p.kv.base);
  // KvElements::index without its divisions.
  auto row_of = [&](int key, bool value) {
    const int inside = min(key, keys - 1);
    const int64_t block = __ldg(table + (inside >> p.block_shift));
    const int within = ((kv_head << p.block_shift) + (inside & ((1 << p.block_shift) - 1))) * kHeadDim;
    return cache + block * p.kv.block_elements + (value ? p.kv.block_elements >> 1 : 0) + within;
  };

  float out[kHalves][8][4] = {};
  float best[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
  for (int i = begin + warp; i < end; i += kWarps) {
    const int key0 = i * kKeys;
    uint4 k[2][kPieces], v[4][kHalves];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const T* row = row_of(key0 + n * 8 + g, false) + q * 8;
#pragma unroll
      for (int c = 0; c < kPieces; ++c) k[n][c] = *reinterpret_cast<const uint4*>(row + c * 32);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {  // keys 2q, 2q + 1, 2q + 8, 2q + 9
      const T* row = row_of(key0 + 2 * q + r % 2 + r / 2 * 8, true) + g * 8;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) v[r][h] = *reinterpret_cast<const uint4*>(row + h * 64);
    }
    float scores[2][4] = {};
#pragma unroll
    for (int c = 0; c < kPieces; ++c)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        mma<T>(scores[n], queries[c][0], k[n][c].x, k[n][c].y);
        mma<T>(scores[n], queries[c][1], k[n][c].z, k[n][c].w);
      }
    uint32_t weights[4];
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = best[h];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (key0 + n * 8 + 2 * q + e >= keys) scores[n][2 * h + e] = -INFINITY;
          m = fmaxf(m, scores[n][2 * h + e]);
        }
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
      shrink[h] = exp2f((best[h] - m) * p.scale_log2);
      best[h] = m;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          scores[n][2 * h + e] = exp2f((scores[n][2 * h + e] - m) * p.scale_log2);
          sum += scores[n][2 * h + e];
        }
      total[h] = total[h] * shrink[h] + sum;
      weights[h] = pack2<T>(scores[0][2 * h], scores[0][2 * h + 1]);
      weights[2 + h] = pack2<T>(scores[1][2 * h], scores[1][2 * h + 1]);
    }
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      uint32_t rows[4][4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        rows[r][0] = v[r][h].x;
        rows[r][1] = v[r][h].y;
        rows[r][2] = v[r][h].z;
        rows[r][3] = v[r][h].w;
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {  // column n of this product is dimension 64h + 8n + j
        const uint32_t select = j % 2 ? 0x7632 : 0x5410;
        const uint32_t b0 = __byte_perm(rows[0][j / 2], rows[1][j / 2], select);
        const uint32_t b1 = __byte_perm(rows[2][j / 2], rows[3][j / 2], select);
        float* o = out[h][j];
        o[0] *= shrink[0];
        o[1] *= shrink[0];
        o[2] *= shrink[1];
        o[3] *= shrink[1];
        mma<T>(o, weights, b0, b1);
      }
    }
  }
  let_next_start();

  float* sums = meeting + kWarps * kRows * kHeadDim;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float t = total[h];
    t += __shfl_xor_sync(0xffffffffu, t, 1);
    t += __shfl_xor_sync(0xffffffffu, t, 2);
    const int row = warp * kRows + h * 8 + g;
    if (q == 0) {
      sums[row * 2] = best[h];
      sums[row * 2 + 1] = t;
    }
#pragma unroll
    for (int b = 0; b < kHalves; ++b)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          meeting[row * kHeadDim + b * 64 + (2 * q + e) * 8 + j] = out[b][j][2 * h + e];
  }
  __syncthreads();
  for (int index = threadIdx.x; index < p.group * kHeadDim; index += kThreads) {
    const int row = index / kHeadDim, d = index % kHeadDim;
    float m = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, sums[(w * kRows + row) * 2]);
    float value = 0, weight = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float own = sums[(w * kRows + row) * 2];
      const float f = own == -INFINITY ? 0.0f : exp2f((own - m) * p.scale_log2);
      value += f * meeting[(w * kRows + row) * kHeadDim + d];
      weight += f * sums[(w * kRows + row) * 2 + 1];
    }
    const int head = kv_head * p.group + row;
    if (p.splits == 1) {
      static_cast<T*>(p.out)[token * p.out_stride + static_cast<int64_t>(head) * kHeadDim + d] =
          static_cast<T>(weight > 0 ? value / weight : 0.0f);
      continue;
    }
    float* to = p.partial + ((static_cast<int64_t>(s) * p.heads + head) * p.splits + split) * (kHeadDim + 2);
    to[d] = value;
    if (d == 0) {
      to[kHeadDim] = m;
      to[kHeadDim + 1] = weight;
    }
  }
}

template <class T, int kHeadDim>
__global__ __launch_bounds__(kHeadDim) void merge_kernel(DecodeParams p) {
  const int s = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x), d = static_cast<int>(threadIdx.x);
  wait_for_previous();
  let_next_start();
  const int64_t token = p.query_offsets[s];
  if (p.query_offsets[s + 1] == token) return;
  const float* from = p.partial + (static_cast<int64_t>(s) * p.heads + head) * p.splits * (kHeadDim + 2);
  float m = -INFINITY;
  for (int i = 0; i < p.splits; ++i) m = fmaxf(m, from[i * (kHeadDim + 2) + kHeadDim]);
  float value = 0, weight = 0;
  for (int i = 0; i < p.splits; ++i) {
    const float own = from[i * (kHeadDim + 2) + kHeadDim];
    const float f = own == -INFINITY ? 0.0f : exp2f((own - m) * p.scale_log2);
    value += f * from[i * (kHeadDim + 2) + d];
    weight += f * from[i * (kHeadDim + 2) + kHeadDim + 1];
  }
  static_cast<T*>(p.out)[token * p.out_stride + static_cast<int64_t>(head) * kHeadDim + d] =
      static_cast<T>(weight > 0 ? value / weight : 0.0f);
}

/// As many splits as give every multiprocessor two blocks, each with at least 64 keys (a turn of its warps). Depends
/// on the step's shape alone, so that a captured graph serves every step of its bucket.
int split_count(const DeviceLimits& limits, const PagedAttentionArgs& args) {
  const int64_t blocks = std::max<int64_t>(1, args.shape.decodes * args.kv_heads);
  const int64_t wanted = 2 * std::max<int64_t>(1, limits.multiprocessors) / blocks;
  const int64_t most = std::max<int64_t>(1, args.shape.max_kv / (kKeys * kWarps));
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::min<int64_t>(most, kMaxSplits)));
}

}  // namespace

void split_decode_attention(Stream& stream, const PagedAttentionArgs& args) {
  const int64_t decodes = args.shape.decodes;
  if (decodes == 0) return;
  DecodeParams p{.q = args.q.data,
                 .out = args.out.data,
                 .q_stride = args.q.row_stride,
                 .out_stride = args.out.row_stride,
                 .group = args.heads / args.kv_heads,
                 .splits = split_count(cuda_stream(stream).device.limits, args),
                 .scale_log2 = args.scale * 1.4426950408889634f,
                 .query_offsets = args.query_offsets.ptr<int>(),
                 .kv_lengths = args.kv_lengths.ptr<int>(),
                 .block_tables = args.block_tables.ptr<int>(),
                 .table_stride = args.block_tables.row_stride,
                 .block_shift = std::countr_zero(static_cast<unsigned>(args.kv.layout.block_size)),
                 .kv = kv_elements(args.kv),
                 .partial = nullptr,
                 .heads = args.heads};
  if (p.splits > 1)
    p.partial = static_cast<float*>(
        operator_scratch(stream, split_attention_bytes(decodes, args.heads, args.head_dim), "paged_attention"));
  const Grid grid{static_cast<unsigned>(p.splits), static_cast<unsigned>(args.kv_heads), static_cast<unsigned>(decodes)};
  const Grid merge{static_cast<unsigned>(args.heads), static_cast<unsigned>(decodes)};
  const size_t shared = static_cast<size_t>(kWarps * kRows * (args.head_dim + 2)) * sizeof(float);
  dispatch_half(args.q.dtype, "paged_attention", [&](auto zero) {
    using T = decltype(zero);
    auto run = [&](auto kernel, auto merger) {
      launch_fast(stream, "split_decode_attention", grid, kThreads, shared, kernel, p);
      if (p.splits > 1) launch_fast(stream, "merge_decode_attention", merge, args.head_dim, 0, merger, p);
    };
    if (args.head_dim == 64)
      run(decode_kernel<T, 64>, merge_kernel<T, 64>);
    else
      run(decode_kernel<T, 128>, merge_kernel<T, 128>);
  });
}

}  // namespace tessera::cuda
