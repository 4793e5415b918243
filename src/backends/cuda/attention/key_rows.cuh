#pragma once

// Up to 8 query rows that share their keys, one warp: decoding, where the rows are the query heads of a key head. Keys are the rows of
// mma.sync and queries its columns, so no product is made of rows that are not there, and operands come by ldmatrix from keys and values
// as they lie in the cache: what a warp does for 16 keys are half a dozen instructions a product.

#include "backends/cuda/fast.cuh"

namespace tessera::cuda {

inline constexpr int kRowsAtOnce = 8;
inline constexpr int kPartKeys = 16;

/// kParts times 16 keys and their values in shared memory: of each tiles of 16 rows of 64 dimensions, 16 bytes of row r swapped with
/// those r % 8 away, so that ldmatrix meets no bank twice.
template <int kHeadDim, int kParts>
struct KeyPiece {
  static constexpr int kKeys = kParts * kPartKeys;
  static constexpr int kTileBytes = kPartKeys * 128;
  static constexpr int kPartBytes = 2 * (kHeadDim / 64) * kTileBytes;
  static constexpr int kBytes = kParts * kPartBytes;

  __device__ __forceinline__ static uint32_t tile(int part, int value, int half) {
    return static_cast<uint32_t>(part * kPartBytes + (value * (kHeadDim / 64) + half) * kTileBytes);
  }
  /// A warp brings a part to the piece at `at`; `keys` and `values` are the first of 16 rows that lie one behind the other.
  template <class T>
  __device__ __forceinline__ static void copy(uint32_t at, int part, const T* keys, const T* values) {
    constexpr uint32_t kChunks = kHeadDim / 8, kRows = 32 / kChunks;  // of 16 bytes in a row; rows at once
    const uint32_t lane = threadIdx.x % 32, row = lane / kChunks, chunk = lane % kChunks;
    const uint32_t to = at + chunk / 8 * kTileBytes + row * 128 + ((chunk % 8 ^ row) << 4);
#pragma unroll
    for (int value = 0; value < 2; ++value) {
      const T* const from = (value ? values : keys) + lane * 8;
#pragma unroll
      for (uint32_t i = 0; i < kPartKeys / kRows; ++i)
        copy_async((to ^ (i * kRows % 8) << 4) + tile(part, value, 0) + i * kRows * 128, from + i * 32 * 8, true);
    }
  }
};

/// Swaps rows and columns of 8 x 8 elements of 16 bits, of which a lane has two of a row.
__device__ __forceinline__ uint32_t transpose8(uint32_t v) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(v));
  return result;
}

/// A warp's rows. Lane l, g = l / 4, q = l % 4, has scores of keys g and g + 8 of 16 for rows 2q and 2q + 1, and for these rows the
/// weighted sums of dimensions g and g + 8 of each 16.
template <class T, int kHeadDim>
class KeyRows {
  static constexpr int kSteps = kHeadDim / 16;

 public:
  static constexpr int kValues = kHeadDim / 8;  ///< of a row, that a lane has
  /// Where dimension d lies if the values of a row's lanes lie one lane after another.
  __device__ __forceinline__ static int place(int d) { return d % 8 * kValues + d / 8; }

  /// `count` rows, one behind the other.
  __device__ __forceinline__ void load_queries(const T* rows, int count) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
    const auto* from = reinterpret_cast<const uint32_t*>(rows + g * kHeadDim + 2 * q);
#pragma unroll
    for (int c = 0; c < kSteps; ++c)
#pragma unroll
      for (int h = 0; h < 2; ++h) queries_[c][h] = g < count ? from[8 * c + 4 * h] : 0;
  }

  /// Takes the piece at `at`, of whose keys `left` exist (or more). Operands are asked for long before their products: one behind the
  /// other they would take twice the time.
  template <int kParts>
  __device__ __forceinline__ void attend(uint32_t at, int left, float scale_log2) {
    using Piece = KeyPiece<kHeadDim, kParts>;
    const uint32_t lane = threadIdx.x % 32, r = lane % 8;
    // Four matrices of 8 x 8: of keys two of rows, then the same of the next 16 bytes; of values two of bytes, then of rows.
    const uint32_t keys = at + (r + lane / 8 % 2 * 8) * 128 + ((lane / 16 ^ r) << 4);
    const uint32_t values = at + (r + lane / 16 * 8) * 128 + ((lane / 8 % 2 ^ r) << 4);
    uint32_t k[kSteps][kParts][4], v[kSteps][kParts][4];
#pragma unroll
    for (int c = 0; c < kSteps; ++c)
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        load_matrix_x4(k[c][part], (keys ^ static_cast<uint32_t>(c % 4) << 5) + Piece::tile(part, 0, c / 4));
    if (left < Piece::kKeys) clear_values<kParts>(at, left);
#pragma unroll
    for (int t = 0; t < kSteps; ++t)
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        load_matrix_x4_transposed(v[t][part], (values ^ static_cast<uint32_t>(t % 4) << 5) + Piece::tile(part, 1, t / 4));
    float scores[kParts][4] = {};
#pragma unroll
    for (int c = 0; c < kSteps; ++c)
#pragma unroll
      for (int part = 0; part < kParts; ++part) mma<T>(scores[part], k[c][part], queries_[c][0], queries_[c][1]);
    if (left < Piece::kKeys) hide<kParts>(left, scores);
    uint32_t weights[kParts][2];
    const float2 shrink = weigh<kParts>(scores, scale_log2, weights);
#pragma unroll
    for (int t = 0; t < kSteps; ++t)
      sums_[t][0] *= shrink.x, sums_[t][1] *= shrink.y, sums_[t][2] *= shrink.x, sums_[t][3] *= shrink.y;
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int t = 0; t < kSteps; ++t) mma<T>(sums_[t], v[t][part], weights[part][0], weights[part][1]);
  }

  /// Until then each lane has the totals of its own keys.
  __device__ __forceinline__ void add_totals() {
#pragma unroll
    for (float& total : totals_)
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) total += __shfl_xor_sync(0xffffffffu, total, mask);
  }

  // Of row 2q + j: the largest score, the sum of weights, weighted sums of values.
  __device__ __forceinline__ float best(int j) const { return best_[j]; }
  __device__ __forceinline__ float total(int j) const { return totals_[j]; }
  __device__ __forceinline__ void values(int j, float (&to)[kValues]) const {
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      to[2 * t] = sums_[t][j];
      to[2 * t + 1] = sums_[t][2 + j];
    }
  }

 private:
  /// Zeros for values behind the last key, since nothing times whatever lies there may be no number.
  template <int kParts>
  __device__ __forceinline__ static void clear_values(uint32_t at, int left) {
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int half = 0; half < kHeadDim / 64; ++half)
        for (int i = static_cast<int>(threadIdx.x) % 32; i < kPartKeys * 8; i += 32)
          if (part * kPartKeys + i / 8 >= left)
            store_shared4(at + KeyPiece<kHeadDim, kParts>::tile(part, 1, half) + static_cast<uint32_t>(i) * 16, make_float4(0, 0, 0, 0));
    __syncwarp();
  }
  /// No scores there.
  template <int kParts>
  __device__ __forceinline__ static void hide(int left, float (&scores)[kParts][4]) {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (part * kPartKeys + i / 2 * 8 + g >= left) scores[part][i] = -INFINITY;
  }

  /// From scores to weights, as the second operand of the product with values. Returns what the sums so far are multiplied with.
  template <int kParts>
  __device__ __forceinline__ float2 weigh(float (&scores)[kParts][4], float scale_log2, uint32_t (&weights)[kParts][2]) {
    float m[2] = {best_[0], best_[1]}, shrink[2];
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < 4; ++i) m[i % 2] = fmaxf(m[i % 2], scores[part][i]);
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2)
#pragma unroll
      for (float& each : m) each = fmaxf(each, __shfl_xor_sync(0xffffffffu, each, mask));
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      shrink[j] = fast_exp2((best_[j] - m[j]) * scale_log2);
      best_[j] = m[j];
      const float offset = -m[j] * scale_log2;
      float sum = 0;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& v = scores[part][2 * h + j];
          v = fast_exp2(fmaf(v, scale_log2, offset));
          sum += v;
        }
      totals_[j] = fmaf(totals_[j], shrink[j], sum);
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int h = 0; h < 2; ++h) weights[part][h] = transpose8(pack2<T>(scores[part][2 * h], scores[part][2 * h + 1]));
    return make_float2(shrink[0], shrink[1]);
  }

  uint32_t queries_[kSteps][2];
  float sums_[kSteps][4] = {};
  float best_[2] = {-INFINITY, -INFINITY}, totals_[2] = {0, 0};
};

}  // namespace tessera::cuda
