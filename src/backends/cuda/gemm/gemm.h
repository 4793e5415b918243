#pragma once

#include "backends/cuda/launch.h"
#include "backends/cuda/plain/epilogue_math.h"
#include "backends/cuda/plain/kv_layout.h"
#include "ops/linear.h"

namespace tessera::cuda {

struct Choice;

/// The halves of a norm between two products, see PreparedNorm. Of narrow_linear alone.
struct NormAhead {
  const float* squares = nullptr;  ///< [parts / 4, m, 4]; null: x is what it is
  int parts = 0;
  int columns = 0;  ///< of x, before any padding
  float eps = 0;
};
struct NormBehind {
  const float* weight = nullptr;  ///< null: none
  void* rows = nullptr;           ///< of the operands' dtype
  int64_t stride = 0;
  float* squares = nullptr;
  int64_t room = 0;  ///< of `squares`, in numbers
};

/// Choices among a row's columns, see FoundChoices. Of narrow_linear alone.
struct ChoicesBehind {
  Choice* found = nullptr;  ///< [m, parts]; null: rows are written
  int64_t room = 0;         ///< of `found`, in choices
  int64_t valid_ids = 0;
};

/// A product with its epilogue, as the dense kernels of this folder take it. All of them require: 16-bit operands of one
/// dtype, 16-byte aligned rows (k a multiple of 8), out and residual with even strides.
struct GemmParams {
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* weight = nullptr;
  int64_t weight_stride = 0;
  int64_t m = 0;
  int64_t packed_rows = 0;  ///< of the weight: a multiple of 64
  int64_t k = 0;
  bool gated = false;
  bool gelu = false;
  EpilogueParams end;
  uint8_t end_kind = 0;  ///< EndKind (fast.cuh); the launch fills it in
  // wgmma_linear alone, see LinearArgs::x_sums and out_sums: [m, k / 64] and [m, n / 64], or null.
  const float2* x_sums = nullptr;
  float x_eps = 0;
  float2* out_sums = nullptr;
  NormAhead ahead;
  NormBehind behind;
  ChoicesBehind choices;
};

/// sm_80: persistent tiles of 128 x 128, three stages, 48 KB.
void mma_linear(Stream& stream, DType dtype, const GemmParams& p);
/// sm_90a: bulk tensor copies and wgmma, persistent tiles of 128 x 256 or 128 x 128.
void wgmma_linear(Stream& stream, DType dtype, const GemmParams& p);
/// The same where all tiles run at once, one a block. False, and nothing done, where they do not or the end is another: lone_linear has no
/// residual, lone_stream one of 16 bits.
bool lone_linear(Stream& stream, DType dtype, const GemmParams& p);
bool lone_stream(Stream& stream, DType dtype, const GemmParams& p);

/// Rotation of queries and keys, and the cache's part in the end of a q | k | v product. half 0: none.
struct RotaryParams {
  int half = 0;  ///< head_dim / 2
  int heads = 0, kv_heads = 0;
  const float* cos_sin = nullptr;
  int64_t cos_sin_stride = 0;
  const int* slots = nullptr;
  int block_shift = 0;  ///< KV blocks are a power of two of tokens
  KvElements kv;
};

/// Where a head's key or value of a slot begins; `head` counts queries' heads first, then keys', then values'.
/// (KvElements::index without its divisions.)
template <class T>
TESSERA_DEVICE T* cache_place(const RotaryParams& r, int slot, int head, bool value) {
  const int kv_head = head - r.heads - (value ? r.kv_heads : 0);
  const int within = ((kv_head << r.block_shift) + (slot & ((1 << r.block_shift) - 1))) * 2 * r.half;
  return static_cast<T*>(r.kv.base) + (slot >> r.block_shift) * r.kv.block_elements +
         (value ? r.kv.block_elements >> 1 : 0) + within;
}

/// A product of few rows with what may stand before it and after it.
struct SkinnyParams {
  GemmParams g;
  const float* norm_weight = nullptr;  ///< given: x are f32 rows, RMS-normed and rounded first
  float norm_eps = 0;
  RotaryParams rotary;  ///< given: of the result only the queries go to `out`, keys and values go to the cache
};

/// Up to 32 rows: streams the weight once, tensor cores only as wide dot products. sm_80. `shared` is what a block may
/// take of shared memory, one of shared_bytes::kSkinny...
void skinny_linear(Stream& stream, DType dtype, const SkinnyParams& p, int64_t shared);
/// Whether m rows of k elements are few enough for skinny_linear to norm them.
bool skinny_norms(int64_t m, int64_t k, int64_t shared);
inline constexpr int64_t kSkinnyRows = 32;
inline constexpr int64_t kDotRows = 8;  ///< up to which it beats narrow_linear
/// Parts that a product left of each row, 0: what was asked for is not prepared.
struct LeftParts {
  int64_t squares = 0, choices = 0;
};
/// sm_90a, up to 64 rows: streams the weight once, its rows as wgmma's rows, slabs over blocks and clusters.
LeftParts narrow_linear(Stream& stream, DType dtype, const GemmParams& p);
/// The same for q | k | v: of the result only the queries go to `out`, keys and values go to the cache. Requires: 16-bit `out`, heads of
/// a multiple of 16 dimensions. False, and nothing done, where the device is better used without.
bool narrow_rotated(Stream& stream, DType dtype, const GemmParams& p, const RotaryParams& rotary);
inline constexpr int64_t kNarrowRows = 64;
inline constexpr int kSkinnyStages = 4;
inline constexpr int kSkinnyStagesSmall = 2;

}  // namespace tessera::cuda
