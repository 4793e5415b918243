#pragma once

// The end of a product of narrow_linear whose rows are logits that only a choice is asked of (FoundChoices): they stay in registers.

#include "backends/cuda/choice.cuh"
#include "backends/cuda/gemm/narrow_end.cuh"

namespace tessera::cuda {

#ifdef TESSERA_WGMMA_HERE

/// A thread's choices, of each token whose sums it has, among its columns of all slabs. A slab has one accumulator tile a warpgroup.
template <int kN>
class ThreadChoices {
  static constexpr int kTokens = kN / 4;
  static constexpr int kKept = kTokens > 8 ? kTokens / 8 : 1;  ///< that are left to a lane at the end
  static constexpr int kWarps = kNarrowConsumers / 32;

 public:
  __device__ __forceinline__ void take(const NarrowParams& p, int slab, uint32_t factors, const float (&d)[kN / 2]) {
    const int q = static_cast<int>(threadIdx.x) % 4, first = slab * p.shape.rows, behind = first + p.shape.rows;
    const int column = first + row_of_sums(0, 0);
    // In all slabs but the last ones every column exists and is allowed.
    const bool whole = behind <= p.g.choices.valid_ids;
    const bool inside[2] = {whole || column < p.g.end.columns, whole || column + 8 < p.g.end.columns};
    const bool allowed[2] = {whole || column < p.g.choices.valid_ids, whole || column + 8 < p.g.choices.valid_ids};
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const float factor = load_shared_float(factors + static_cast<uint32_t>(i / 2 * 8 + 2 * q + i % 2) * 4);
      Choice& c = of_[i];
      float v[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        v[h] = inside[h] ? d[i / 2 * 4 + 2 * h + i % 2] * factor : -INFINITY;
        const bool better = allowed[h] && v[h] > c.top;  // columns ascend: of equals the first stays
        c.top = better ? v[h] : c.top;
        c.id = better ? column + 8 * h : c.id;
      }
      const float best = fmaxf(c.best, fmaxf(v[0], v[1]));
      const float offset = best == -INFINITY ? 0.0f : -best * kLog2e;
      c.sum = c.sum * fast_exp2(fmaf(c.best, kLog2e, offset)) +
              (fast_exp2(fmaf(v[0], kLog2e, offset)) + fast_exp2(fmaf(v[1], kLog2e, offset)));
      c.best = best;
    }
  }

  /// All consumers: the block's choices to memory, of each token one. `room` of shared memory: kWarps * kN choices.
  __device__ __forceinline__ void leave(const NarrowParams& p, uint32_t room) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    share_out<kTokens>(16);
    share_out<(kTokens + 1) / 2>(8);
    share_out<(kTokens + 3) / 4>(4);
    named_barrier_sync(1, kNarrowConsumers);  // all have read the last of the ring
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      if (!speaks(lane)) break;
      const int index = first_kept(lane) + i, token = index / 2 * 8 + lane % 4 * 2 + index % 2;
      const Choice& c = of_[i];
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(room + static_cast<uint32_t>(token * kWarps + warp) * 16),
                   "r"(__float_as_uint(c.top)), "r"(c.id), "r"(__float_as_uint(c.best)), "r"(__float_as_uint(c.sum))
                   : "memory");
    }
    named_barrier_sync(1, kNarrowConsumers);
    const int token = static_cast<int>(threadIdx.x);
    if (token >= p.g.m) return;
    Choice all;
    for (int w = 0; w < kWarps; ++w) {
      const uint4 v = load_shared(room + static_cast<uint32_t>(token * kWarps + w) * 16);
      all = join(all, {__uint_as_float(v.x), static_cast<int>(v.y), __uint_as_float(v.z), __uint_as_float(v.w)});
    }
    p.g.choices.found[token * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x)] = all;
  }

 private:
  static constexpr float kLog2e = 1.4426950408889634f;

  /// The 8 lanes that share tokens share them out: of kCount choices each of two lanes keeps half, joined with the other's; a single
  /// one both keep.
  template <int kCount>
  __device__ __forceinline__ void share_out(int mask) {
    if constexpr (kCount == 1) {
      of_[0] = join(of_[0], choice_across(of_[0], mask));
    } else {
      const bool upper = (threadIdx.x & static_cast<unsigned>(mask)) != 0;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        const Choice low = of_[i], high = of_[kCount / 2 + i];
        of_[i] = join(upper ? high : low, choice_across(upper ? low : high, mask));
      }
    }
  }
  /// Of lanes that keep the same one the first.
  __device__ __forceinline__ static bool speaks(int lane) {
    bool first = true;
    int count = kTokens;
#pragma unroll
    for (int mask = 16; mask >= 4; mask /= 2)
      if (count > 1)
        count /= 2;
      else
        first = first && (lane & mask) == 0;
    return first;
  }
  /// Which of the thread's tokens they left to a lane.
  __device__ __forceinline__ static int first_kept(int lane) {
    int index = 0, count = kTokens;
#pragma unroll
    for (int mask = 16; mask >= 4; mask /= 2)
      if (count > 1) {
        count /= 2;
        index += (lane & mask) != 0 ? count : 0;
      }
    return index;
  }

  Choice of_[kTokens];
};

#endif

}  // namespace tessera::cuda
