#pragma once

// Up to 16 query rows that share their keys, one warp and 16 keys at a time: decoding, where the rows are the query heads
// of a key head. Neither product minds in which order its inner dimension is numbered, so a lane's operands of mma.sync are
// whole 16-byte pieces of keys and values.

#include "backends/cuda/fast.cuh"

namespace tessera::cuda {

inline constexpr int kRowsOfWarp = 16;
inline constexpr int kKeysOfStep = 16;

/// A lane's share of 16 keys and values, in registers.
template <int kHeadDim>
struct KeyStep {
  uint4 k[2][kHeadDim / 32];  ///< 4 lanes share a key
  uint4 v[4][kHeadDim / 64];  ///< 8 lanes share a value

  __device__ __forceinline__ uint4 key(int n, int c) const { return k[n][c]; }
  __device__ __forceinline__ uint4 value(int r, int h) const { return v[r][h]; }

  /// `row_of(key, is_value)`: where a key's or value's row begins, as const T*. Must be safe for keys beyond the last.
  template <class T, class RowOf>
  __device__ __forceinline__ void load(int key0, RowOf row_of) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const T* row = row_of(key0 + n * 8 + g, false) + q * 8;
#pragma unroll
      for (int c = 0; c < kHeadDim / 32; ++c) k[n][c] = *reinterpret_cast<const uint4*>(row + c * 32);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {  // keys 2q, 2q + 1, 2q + 8, 2q + 9
      const T* row = row_of(key0 + 2 * q + r % 2 + r / 2 * 8, true) + g * 8;
#pragma unroll
      for (int h = 0; h < kHeadDim / 64; ++h) v[r][h] = *reinterpret_cast<const uint4*>(row + h * 64);
    }
  }
};

template <class T, int kDim>
class WarpRows {
  static constexpr int kPieces = kDim / 32, kHalves = kDim / 64;

 public:
  static constexpr int kHeadDim = kDim;
  /// What one warp leaves in shared memory: of each row the weighted sums (dimension d at left_at(d)), maximum and total.
  static constexpr int kLeftStride = kHeadDim + 8;
  static constexpr int kLeft = kRowsOfWarp * kLeftStride;
  __device__ __forceinline__ static int left_at(int d) { return d / 64 * 64 + d % 8 * 8 + d % 64 / 8; }

  /// `count` rows, `stride` elements apart.
  __device__ __forceinline__ void load_queries(const T* rows, int64_t stride, int count) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
    // Step 2c + e of the inner dimension holds, in lane q, dimensions 32c + 8q + 4e .. + 3.
#pragma unroll
    for (int c = 0; c < kPieces; ++c) {
      const uint4 zero = make_uint4(0, 0, 0, 0);
      const T* from = rows + c * 32 + q * 8;
      const uint4 low = g < count ? *reinterpret_cast<const uint4*>(from + g * stride) : zero;
      const uint4 high = g + 8 < count ? *reinterpret_cast<const uint4*>(from + (g + 8) * stride) : zero;
      const uint32_t l[4] = {low.x, low.y, low.z, low.w}, h[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        queries_[c][e][0] = l[2 * e];
        queries_[c][e][1] = h[2 * e];
        queries_[c][e][2] = l[2 * e + 1];
        queries_[c][e][3] = h[2 * e + 1];
      }
    }
  }

  /// Takes 16 keys from key0 on; those from `keys` on do not count.
  template <class Step>
  __device__ __forceinline__ void attend(const Step& step, int key0, int keys, float scale_log2) {
    const int q = static_cast<int>(threadIdx.x) % 4;
    float scores[2][4] = {};
#pragma unroll
    for (int c = 0; c < kPieces; ++c)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint4 key = step.key(n, c);
        mma<T>(scores[n], queries_[c][0], key.x, key.y);
        mma<T>(scores[n], queries_[c][1], key.z, key.w);
      }
    uint32_t weights[4];
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = best_[h];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (key0 + n * 8 + 2 * q + e >= keys) scores[n][2 * h + e] = -INFINITY;
          m = fmaxf(m, scores[n][2 * h + e]);
        }
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
      shrink[h] = fast_exp2((best_[h] - m) * scale_log2);
      best_[h] = m;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          scores[n][2 * h + e] = fast_exp2((scores[n][2 * h + e] - m) * scale_log2);
          sum += scores[n][2 * h + e];
        }
      total_[h] = total_[h] * shrink[h] + sum;
      weights[h] = pack2<T>(scores[0][2 * h], scores[0][2 * h + 1]);
      weights[2 + h] = pack2<T>(scores[1][2 * h], scores[1][2 * h + 1]);
    }
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      uint32_t rows[4][4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const uint4 value = step.value(r, h);
        rows[r][0] = value.x;
        rows[r][1] = value.y;
        rows[r][2] = value.z;
        rows[r][3] = value.w;
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {  // column n of this product is dimension 64h + 8n + j
        const uint32_t select = j % 2 ? 0x7632 : 0x5410;
        const uint32_t b0 = __byte_perm(rows[0][j / 2], rows[1][j / 2], select);
        const uint32_t b1 = __byte_perm(rows[2][j / 2], rows[3][j / 2], select);
        float* o = out_[h][j];
        o[0] *= shrink[0];
        o[1] *= shrink[0];
        o[2] *= shrink[1];
        o[3] *= shrink[1];
        mma<T>(o, weights, b0, b1);
      }
    }
  }

  /// The results of the first `count` rows to `to`: kLeft floats of shared memory, free to write.
  __device__ __forceinline__ void leave(float* to, int count) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float t = total_[h];
      t += __shfl_xor_sync(0xffffffffu, t, 1);
      t += __shfl_xor_sync(0xffffffffu, t, 2);
      if (h * 8 + g >= count) continue;
      float* row = to + (h * 8 + g) * kLeftStride;
      if (q == 0) *reinterpret_cast<float2*>(row + kHeadDim) = make_float2(best_[h], t);
#pragma unroll
      for (int b = 0; b < kHalves; ++b)
#pragma unroll
        for (int j = 0; j < 8; ++j)  // dimensions 64 b + 8 (2 q) + j and 8 further
          *reinterpret_cast<float2*>(row + b * 64 + j * 8 + 2 * q) =
              make_float2(out_[b][j][2 * h], out_[b][j][2 * h + 1]);
    }
  }

 private:
  uint32_t queries_[kPieces][2][4];
  float out_[kHalves][8][4] = {};
  float best_[2] = {-INFINITY, -INFINITY}, total_[2] = {0, 0};
};

/// One dimension of one row, of several warps or splits together.
struct MergedRow {
  float value = 0;    ///< weighted sum, relative to `best`
  float best = -INFINITY;
  float total = 0;
};

/// What `warps` warps left, `stride` floats apart.
template <class Rows>
__device__ __forceinline__ MergedRow merge_warps(const float* left, int warps, int stride, int row, int d,
                                                 float scale_log2) {
  MergedRow merged;
  left += row * Rows::kLeftStride;
  for (int w = 0; w < warps; ++w) merged.best = fmaxf(merged.best, left[w * stride + Rows::kHeadDim]);
  for (int w = 0; w < warps; ++w) {
    const float* from = left + w * stride;
    const float own = from[Rows::kHeadDim];
    const float f = own == -INFINITY ? 0.0f : fast_exp2((own - merged.best) * scale_log2);
    merged.value += f * from[Rows::left_at(d)];
    merged.total += f * from[Rows::kHeadDim + 1];
  }
  return merged;
}

}  // namespace tessera::cuda
