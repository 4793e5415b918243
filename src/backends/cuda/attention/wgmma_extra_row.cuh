#pragma once

// The row of a tile that its jobs of 128 leave over (the 1025th) would cost a job of its own. The blocks that have a job fewer than others
// make such rows when their jobs are done: the warps share the keys, which the producer brings once more. Products are transposed
// (keys as rows), so that the row is a column of an mma. Beside wgmma each of these small products would wait for the large ones.

#include "backends/cuda/attention/wgmma_flash.cuh"

namespace tessera::cuda {

#ifdef TESSERA_WGMMA_HERE

/// 8 x 8 elements of 16 bits, a row's pair a lane, to columns.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t pair) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

/// One of the warps that compute; g = lane / 4, q = lane % 4. Each takes every eighth 16 keys of a piece and has a softmax of its own until
/// all meet. Of an mma's eight columns the first is the row.
template <class S>
class ExtraRow {
 public:
  using T = typename S::T;
  static constexpr int kDims = S::kHeadDim / 16, kWarps = 4 * S::kGroups;
  static constexpr int kStep = 16 * kWarps;
  static constexpr int kAtOnce = (S::kKeys + kStep - 1) / kStep;  ///< times 16 keys: all of a warp's

  /// `raw`: where `memory` begins, generically: queries, which nobody reads any more, make room to meet. `ring`: where the stream of
  /// pieces is.
  __device__ ExtraRow(const FlashMemory<S>& memory, unsigned char* raw, Ring<S::kStages> ring, float scale_log2)
      : memory_(memory), meeting_(reinterpret_cast<float*>(raw)), ring_(ring), scale_log2_(scale_log2), warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {
    static_assert(kWarps * (S::kHeadDim + 2) * 4 <= S::kQueryBytes);
    named_barrier_sync(kMeet, kWarps * 32);
  }

  /// Asks for the query of the row that run() makes next.
  __device__ __forceinline__ void ask(const T* q) {
    const T* from = q + 2 * (lane_ % 4);
#pragma unroll
    for (int d = 0; d < 2 * kDims; ++d) asked_[d] = *reinterpret_cast<const uint32_t*>(from + 8 * d);
  }

  /// The row asked for. `next`: another row's query, or null.
  __device__ void run(const FlashJob& job, const T* next, T* out) {
#pragma unroll
    for (int d = 0; d < 2 * kDims; ++d) queries_[d] = asked_[d];
    if (next) ask(next);
    best_ = -INFINITY, total_ = 0;
#pragma unroll
    for (float& sum : sums_) sum = 0;
    for (int piece = 0; piece < job.pieces; ++piece) {
      barrier_wait(memory_.k_full(ring_.at), ring_.parity);
      attend(memory_.k(ring_.at), memory_.v(ring_.at), memory_.v_full(ring_.at), job.keys - piece * S::kKeys);
      named_barrier_sync(1 + warp_ / 4, 128);
      if (threadIdx.x % 128 == 0) {
        barrier_arrive(memory_.k_empty(ring_.at));
        barrier_arrive(memory_.v_empty(ring_.at));
      }
      ring_.step();
    }
    end(out);
  }

 private:
  /// `keys`: of the piece on. What lies behind them is read, with weights of zero.
  __device__ __forceinline__ void attend(uint32_t k, uint32_t v, uint32_t v_full, int keys) {
    const int first = 16 * warp_;
    float scores[kAtOnce][4] = {};
    if (first < min(keys, S::kKeys)) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int key = first + i * kStep, there = key < S::kKeys ? keys - key - lane_ / 4 : 0;
        make_scores(scores[i], k + min(key, S::kKeys - 16) * 128);
#pragma unroll
        for (int j = 0; j < 4; j += 2) scores[i][j] = j / 2 * 8 < there ? scores[i][j] : -INFINITY;
      }
      soften(scores);
    }
    barrier_wait(v_full, ring_.parity);
    if (first >= min(keys, S::kKeys)) return;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) add_values(scores[i], v + min(first + i * kStep, S::kKeys - 16) * 128);
  }

  // Rows of 128 bytes are swizzled: 16 bytes at a row's place i lie at i ^ row % 8. Steps of 32 bytes stay outside of that.
  __device__ __forceinline__ void make_scores(float (&scores)[4], uint32_t k) const {
    const int row = lane_ % 8, matrix = lane_ / 8;
    const uint32_t from = k + (matrix % 2 * 8 + row) * 128 + (matrix / 2 ^ row) * 16;
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      uint32_t a[4];
      load_matrix_x4(a, from ^ 32 * d);
      mma<T>(scores, a, queries_[2 * d], queries_[2 * d + 1]);
    }
  }

  __device__ __forceinline__ void add_values(const float (&weights)[4], uint32_t v) {
    const int row = lane_ % 8, matrix = lane_ / 8;
    const uint32_t from = v + (matrix / 2 * 8 + row) * 128 + (matrix % 2 ^ row) * 16;
    const uint32_t b0 = transpose_8x8(pack2<T>(weights[0], 0.0f)), b1 = transpose_8x8(pack2<T>(weights[2], 0.0f));
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      uint32_t a[4];
      load_matrix_x4_transposed(a, from ^ 32 * d);
      mma<T>(sums_ + 4 * d, a, b0, b1);
    }
  }

  /// Scores, at least one key's, to weights. All columns are the same row.
  __device__ __forceinline__ void soften(float (&scores)[kAtOnce][4]) {
    float m = best_;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) m = fmaxf(m, fmaxf(scores[i][0], scores[i][2]));
#pragma unroll
    for (int step = 4; step < 32; step *= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, step));
    const float base = m * scale_log2_, shrink = fast_exp2(fmaf(best_, scale_log2_, -base));
    best_ = m;
    total_ *= shrink;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int h = 0; h < 4; h += 2) {
        scores[i][h] = fast_exp2(fmaf(scores[i][h], scale_log2_, -base));
        total_ += scores[i][h];
      }
#pragma unroll
    for (int d = 0; d < 4 * kDims; d += 2) sums_[d] *= shrink;
  }

  __device__ __forceinline__ float* place(int warp) const { return meeting_ + warp * (S::kHeadDim + 2); }

  __device__ __forceinline__ void end(T* out) const {
    float total = total_;
#pragma unroll
    for (int step = 4; step < 32; step *= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    float* to = place(warp_);
    if (lane_ % 4 == 0) {
#pragma unroll
      for (int d = 0; d < kDims; ++d) {
        to[16 * d + lane_ / 4] = sums_[4 * d];
        to[16 * d + lane_ / 4 + 8] = sums_[4 * d + 2];
      }
    }
    if (lane_ == 0) to[S::kHeadDim] = best_, to[S::kHeadDim + 1] = total;
    named_barrier_sync(kMeet, kWarps * 32);
    if (static_cast<int>(threadIdx.x) < S::kHeadDim) out[threadIdx.x] = static_cast<T>(merged(static_cast<int>(threadIdx.x)));
    named_barrier_sync(kMeet, kWarps * 32);
  }

  __device__ __forceinline__ float merged(int column) const {
    float best = -INFINITY, value = 0, weight = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) best = fmaxf(best, place(w)[S::kHeadDim]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* at = place(w);
      const float f = fast_exp2((at[S::kHeadDim] - best) * scale_log2_);
      value += f * at[column];
      weight += f * at[S::kHeadDim + 1];
    }
    return value / weight;
  }

  static constexpr int kMeet = 8;  ///< a named barrier

  FlashMemory<S> memory_;
  float* meeting_;  ///< each warp's sums, maximum and total
  Ring<S::kStages> ring_;
  float scale_log2_;
  int warp_, lane_;
  uint32_t asked_[2 * kDims], queries_[2 * kDims];
  float best_, total_;    ///< the total is of this lane's keys
  float sums_[4 * kDims];  ///< of 16 dimensions in four, of which the first and the third count: dimensions g and g + 8
};

#endif

}  // namespace tessera::cuda
