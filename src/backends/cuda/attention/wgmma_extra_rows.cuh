#pragma once

// The rows of a tile that its jobs of 128 leave over (the 1025th) would cost a job of their own. They ride along with one
// job of each head instead: warps beside the producer read the same keys and values in shared memory, as it passes them.
// Products are transposed (keys as rows), so that up to eight rows are the columns of one mma.

#include "backends/cuda/attention/wgmma_flash.cuh"

namespace tessera::cuda {

constexpr int kExtraWarps = 3;
constexpr int kMostExtraRows = 2;
/// Shared memory where the warps meet: each one's sums, maximum and total of each row.
template <class S>
constexpr int kExtraBytes = kExtraWarps * kMostExtraRows * (S::kHeadDim + 2) * 4;

#ifdef TESSERA_WGMMA_HERE

/// 8 x 8 elements of 16 bits, a row's pair a lane, to columns.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t pair) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

/// One of the warps; g = lane / 4, q = lane % 4. Each takes every third 16 keys of a piece and has a softmax of its own until all
/// meet. A small mma waits for the large ones ahead of it, so scores of three times 16 keys are made before any is used.
template <class S>
class ExtraRows {
 public:
  using T = typename S::T;
  static constexpr int kDims = S::kHeadDim / 16;
  static constexpr int kAtOnce = 3;                  ///< times 16 keys
  static constexpr int kStep = 16 * kExtraWarps;

  /// `rows`: how many, at most kMostExtraRows. `meeting`: kExtraBytes.
  __device__ ExtraRows(const FlashMemory<S>& memory, float* meeting, int rows, float scale_log2)
      : memory_(memory), meeting_(meeting), rows_(rows), scale_log2_(scale_log2), warp_(static_cast<int>(threadIdx.x) / 32 % 4 - 1),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  /// `source` says which jobs carry rows, carries(job), and where the first one begins, extra_place(job, stride).
  template <class Source>
  __device__ void run(const Source& source, const T* q, int64_t q_stride, T* out, int64_t out_stride) {
    Ring<S::kStages> ring;
    for (FlashJob job = source.first(); job.pieces > 0; job = source.next(job)) {
      const bool carries = source.carries(job);
      if (carries) begin(q + source.extra_place(job, q_stride), q_stride);
      for (int piece = 0; piece < job.pieces; ++piece) {
        barrier_wait(memory_.k_full(ring.at), ring.parity);
        barrier_wait(memory_.v_full(ring.at), ring.parity);
        if (carries) attend(memory_.k(ring.at), memory_.v(ring.at), job.keys - piece * S::kKeys);
        __syncwarp();
        if (lane_ == 0) {
          barrier_arrive(memory_.k_empty(ring.at));
          barrier_arrive(memory_.v_empty(ring.at));
        }
        ring.step();
      }
      if (carries) end(out + source.extra_place(anew(source, job), out_stride), out_stride);
    }
  }

 private:
  __device__ __forceinline__ void begin(const T* q, int64_t stride) {
    const T* from = q + min(lane_ / 4, rows_ - 1) * stride + 2 * (lane_ % 4);
#pragma unroll
    for (int d = 0; d < 2 * kDims; ++d) queries_[d] = *reinterpret_cast<const uint32_t*>(from + 8 * d);
#pragma unroll
    for (int i = 0; i < 2; ++i) best_[i] = -INFINITY, total_[i] = 0;
#pragma unroll
    for (int i = 0; i < 4 * kDims; ++i) sums_[i] = 0;
  }

  /// `keys`: of the piece on. What lies behind them is read, with weights of zero.
  __device__ __forceinline__ void attend(uint32_t k, uint32_t v, int keys) {
#pragma unroll 1
    for (int first = 16 * warp_; first < min(keys, S::kKeys); first += kAtOnce * kStep) {
      float scores[kAtOnce][4] = {};
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int key = first + i * kStep, there = key < S::kKeys ? keys - key - lane_ / 4 : 0;
        make_scores(scores[i], k + min(key, S::kKeys - 16) * 128);
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[i][j] = j / 2 * 8 < there ? scores[i][j] : -INFINITY;
      }
      soften(scores);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) add_values(scores[i], v + min(first + i * kStep, S::kKeys - 16) * 128);
    }
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
    const uint32_t b0 = transpose_8x8(pack2<T>(weights[0], weights[1])), b1 = transpose_8x8(pack2<T>(weights[2], weights[3]));
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      uint32_t a[4];
      load_matrix_x4_transposed(a, from ^ 32 * d);
      mma<T>(sums_ + 4 * d, a, b0, b1);
    }
  }

  /// Scores, at least one key's, to weights. Elements j and j + 2 of four belong to row 2q + j.
  __device__ __forceinline__ void soften(float (&scores)[kAtOnce][4]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float m = best_[j];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) m = fmaxf(m, fmaxf(scores[i][j], scores[i][j + 2]));
#pragma unroll
      for (int step = 4; step < 32; step *= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, step));
      const float base = m * scale_log2_, shrink = fast_exp2(fmaf(best_[j], scale_log2_, -base));
      best_[j] = m;
      total_[j] *= shrink;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
        for (int h = j; h < 4; h += 2) {
          scores[i][h] = fast_exp2(fmaf(scores[i][h], scale_log2_, -base));
          total_[j] += scores[i][h];
        }
#pragma unroll
      for (int d = 0; d < kDims; ++d) {
        sums_[4 * d + j] *= shrink;
        sums_[4 * d + 2 + j] *= shrink;
      }
    }
  }

  __device__ __forceinline__ float* place(int warp, int row) const { return meeting_ + (warp * kMostExtraRows + row) * (S::kHeadDim + 2); }

  __device__ __forceinline__ void end(T* out, int64_t stride) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float total = total_[i];
#pragma unroll
      for (int step = 4; step < 32; step *= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
      const int row = 2 * (lane_ % 4) + i;
      if (row >= rows_) continue;
      float* to = place(warp_, row);
#pragma unroll
      for (int d = 0; d < kDims; ++d) {
        to[16 * d + lane_ / 4] = sums_[4 * d + i];
        to[16 * d + lane_ / 4 + 8] = sums_[4 * d + 2 + i];
      }
      if (lane_ < 4) to[S::kHeadDim] = best_[i], to[S::kHeadDim + 1] = total;
    }
    named_barrier_sync(kMeet, kExtraWarps * 32);
    for (int i = warp_ * 32 + lane_; i < rows_ * S::kHeadDim; i += kExtraWarps * 32) store(out, stride, i / S::kHeadDim, i % S::kHeadDim);
    named_barrier_sync(kMeet, kExtraWarps * 32);
  }

  __device__ __forceinline__ void store(T* out, int64_t stride, int row, int column) const {
    float m = -INFINITY, value = 0, weight = 0;
#pragma unroll
    for (int w = 0; w < kExtraWarps; ++w) m = fmaxf(m, place(w, row)[S::kHeadDim]);
#pragma unroll
    for (int w = 0; w < kExtraWarps; ++w) {
      const float* at = place(w, row);
      const float f = fast_exp2((at[S::kHeadDim] - m) * scale_log2_);
      value += f * at[column];
      weight += f * at[S::kHeadDim + 1];
    }
    out[row * stride + column] = static_cast<T>(value / weight);
  }

  static constexpr int kMeet = 8;  ///< a named barrier

  FlashMemory<S> memory_;
  float* meeting_;
  int rows_;
  float scale_log2_;
  int warp_, lane_;
  uint32_t queries_[2 * kDims];     ///< of row g
  float best_[2], total_[2];        ///< of rows 2q and 2q + 1; the total is of this lane's keys
  float sums_[4 * kDims];           ///< of 16 dimensions in four: g and rows 2q, 2q + 1, then g + 8
};

#endif

}  // namespace tessera::cuda
