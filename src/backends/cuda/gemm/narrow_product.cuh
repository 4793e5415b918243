#pragma once

// How narrow_linear multiplies what its ring brings.

#include "backends/cuda/wgmma.cuh"

namespace tessera::cuda {

inline constexpr int kDepth = 64;  ///< of a stage: a swizzled row of 128 bytes

#ifdef TESSERA_WGMMA_HERE

/// The block's way through shared memory, the same for both sides of the ring.
struct Ring {
  uint32_t barriers, first;
  int stages, x_bytes, bytes;
  __device__ uint32_t x(int s) const { return first + static_cast<uint32_t>(s * bytes); }
  __device__ uint32_t weight(int s) const { return x(s) + static_cast<uint32_t>(x_bytes); }
  __device__ uint32_t full(int s) const { return barriers + static_cast<uint32_t>(s) * 16; }
  __device__ uint32_t empty(int s) const { return full(s) + 8; }
  __device__ uint32_t end() const { return x(stages); }
};

/// The reading side's place in the ring.
struct Place {
  int stage = 0;
  uint32_t parity = 0;
};

/// Registers with whatever is in them. (Sums that other code had a hand in, even by a branch around the product, make the
/// assembler wait after each wgmma.)
template <int kTiles, int kCount>
__device__ __forceinline__ void take_as_they_are(float (&d)[kTiles][kCount]) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "=f"(d[t][i]));
}

#define TESSERA_WGMMA_SS_80(TYPE)                                                                                       \
  asm volatile(                                                                                                          \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %42, 0;\n"                                                                       \
      "wgmma.mma_async.sync.aligned.m64n80k16.f32." TYPE "." TYPE " {"                                                   \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "                       \
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39"               \
      "}, %40, %41, p, 1, 1, 0, 0;\n}\n"                                                                                 \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),                  \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),            \
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),          \
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),          \
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])           \
      : "l"(a), "l"(b), "r"(accumulate))

/// wgmma of any multiple of 16 columns, in as few pieces as there are instructions for: each reads a once more.
template <class T, int kColumns>
__device__ __forceinline__ void wgmma_columns(float* d, uint64_t a, uint64_t b, int accumulate) {
  if constexpr (kColumns == 80) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) TESSERA_WGMMA_SS_80("bf16"); else TESSERA_WGMMA_SS_80("f16");
  } else {
    constexpr int kPiece = kColumns >= 128 ? 128 : kColumns >= 64 ? 64 : kColumns >= 32 ? 32 : 16;
    wgmma<T, kPiece>(d, a, b, accumulate);
    if constexpr (kColumns > kPiece) wgmma_columns<T, kColumns - kPiece>(d + kPiece / 2, a, b + (kPiece * 128 >> 4), accumulate);
  }
}
#undef TESSERA_WGMMA_SS_80

/// A warpgroup's share of the products of a stage: kTiles times 64 of the slab's rows with the tokens.
template <class T, int kN, int kTiles>
struct RowsByTokens {
  int group;
  __device__ __forceinline__ void operator()(const Ring& ring, int s, bool first, float (&d)[kTiles][kN / 2]) const {
    const uint64_t b = operand(ring.x(s));
    // Rows past the slab multiply whatever lies there; nobody looks at them.
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint64_t a = operand(ring.weight(s) + static_cast<uint32_t>((2 * t + group) * 64 * 128));
#pragma unroll
      for (int i = 0; i < kDepth / 16; ++i) wgmma<T, kN>(d[t], a + 2 * i, b + 2 * i, !first || i != 0);
    }
  }
};

/// The same the other way round: the tokens, or whatever lies behind them, are wgmma's 64 rows, kColumns of the slab's rows from
/// `first_row` on its columns. Small slabs then leave none of 64 rows idle.
template <class T, int kColumns>
struct TokensByRows {
  int first_row;
  __device__ __forceinline__ void operator()(const Ring& ring, int s, bool first, float (&d)[1][kColumns / 2]) const {
    const uint64_t a = operand(ring.x(s)), b = operand(ring.weight(s) + static_cast<uint32_t>(first_row * 128));
#pragma unroll
    for (int i = 0; i < kDepth / 16; ++i) wgmma_columns<T, kColumns>(d[0], a + 2 * i, b + 2 * i, !first || i != 0);
  }
};

template <class Product, int kTiles, int kCount>
__device__ __forceinline__ void multiply(const Ring& ring, const Product& product, int steps, Place& place,
                                         float (&d)[kTiles][kCount]) {
  int before = 0;
  for (int k = 0; k < steps; ++k) {
    const int s = place.stage;
    barrier_wait(ring.full(s), place.parity);
    wgmma_fence();
    product(ring, s, k == 0, d);
    wgmma_commit();
    wgmma_wait<1>();  // the step before has been read
    if (k > 0 && threadIdx.x % 128 == 0) barrier_arrive(ring.empty(before));
    before = s;
    if (++place.stage == ring.stages) place = {0, place.parity ^ 1u};
  }
  wgmma_wait<0>();
  if (threadIdx.x % 128 == 0) barrier_arrive(ring.empty(before));
#pragma unroll
  for (int t = 0; t < kTiles; ++t) wgmma_arrived(d[t]);
}

#endif

}  // namespace tessera::cuda
