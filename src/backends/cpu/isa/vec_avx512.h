#pragma once

#include <immintrin.h>

#include "backends/cpu/isa/transpose16.h"
#include "backends/cpu/leaf.h"

// Sixteen floats. Everything is in an unnamed namespace: these sources are compiled for one instruction set, and no
// function of theirs may be shared with the rest of the program.
namespace tessera::cpu {
namespace {

using Vec = __m512;
constexpr int64_t kWidth = 16;

inline Vec v_set(float x) { return _mm512_set1_ps(x); }
inline Vec v_zero() { return _mm512_setzero_ps(); }
inline Vec v_load(const float* p) { return _mm512_loadu_ps(p); }
inline void v_store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec v_add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec v_sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec v_mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec v_div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec v_max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec v_min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
/// a * b + c, rounded once.
inline Vec v_fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec v_abs(Vec x) { return _mm512_abs_ps(x); }
/// |a| with the sign of b.
inline Vec v_copysign(Vec a, Vec b) {
  const __m512i sign = _mm512_set1_epi32(INT32_MIN);
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b), sign, 0xd8));
}
inline Vec v_round(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/// x * 2^n for integral n in [-126, 127].
inline Vec v_scale(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
inline float v_sum(Vec x) { return _mm512_reduce_add_ps(x); }
inline float v_largest(Vec x) { return _mm512_reduce_max_ps(x); }

inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
/// The first n < kWidth elements; the rest is `other`.
inline Vec v_keep(Vec x, int64_t n, Vec other) { return _mm512_mask_blend_ps(first(n), other, x); }

inline __m512i round_to_bf16(Vec x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_srli_epi32(_mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000)), 16);
}

/// Elements [i, i + n) of an array of any floating type, n <= kWidth; the rest is zero.
inline Vec v_load_as(const void* p, Element type, int64_t i, int64_t n) {
  const __mmask16 mask = n >= kWidth ? __mmask16{0xffff} : first(n);
  if (type == kElementF32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(p) + i);
  const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(p) + i);
  if (type == kElementF16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline void v_store_as(void* p, Element type, int64_t i, int64_t n, Vec x) {
  const __mmask16 mask = n >= kWidth ? __mmask16{0xffff} : first(n);
  if (type == kElementF32) return _mm512_mask_storeu_ps(static_cast<float*>(p) + i, mask, x);
  const __m256i half = type == kElementF16 ? _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                                           : _mm512_cvtepi32_epi16(round_to_bf16(x));
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(p) + i, mask, half);
}

/// Sixteen columns of a panel at one k; for bf16 the even and the odd k of a pair.
inline void panel_load(const char* b, Element type, Vec out[1]) {
  out[0] = type == kElementF32 ? _mm512_loadu_ps(b)
                               : _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
}
inline void panel_load_pair(const char* b, Vec even[1], Vec odd[1]) {
  const __m512i pair = _mm512_loadu_si512(b);
  even[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
  odd[0] = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

/// Keeps the larger of best and x and the index it came with; the earlier one of equals.
/// Words [0, n) of up to sixteen rows, n <= 16, into n lines of sixteen; see LeafKernels::transpose_words.
inline void transpose_piece(const char* x, int64_t stride, int64_t rows, int64_t n, char* out) {
  const __mmask16 mask = n >= 16 ? __mmask16{0xffff} : first(n);
  __m512i lines[16];
  for (int64_t r = 0; r < 16; ++r)
    lines[r] = r < rows ? _mm512_maskz_loadu_epi32(mask, x + r * stride) : _mm512_setzero_si512();
  transpose16(lines);
  for (int64_t i = 0; i < n; ++i) _mm512_storeu_si512(out + 64 * i, lines[i]);
}

struct Best {
  Vec value;
  __m512i index;
};
inline Best best_start() { return {v_set(-__builtin_inff()), _mm512_setzero_si512()}; }
inline void best_take(Best& best, Vec x, int64_t i) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 larger = _mm512_cmp_ps_mask(x, best.value, _CMP_GT_OQ);
  best.value = _mm512_mask_mov_ps(best.value, larger, x);
  best.index = _mm512_mask_add_epi32(best.index, larger, lanes, _mm512_set1_epi32(static_cast<int>(i)));
}
inline void best_lanes(const Best& best, float* values, int32_t* indices) {
  v_store(values, best.value);
  _mm512_storeu_si512(indices, best.index);
}

constexpr int kVectorsPerPanel = 1;
constexpr int kGroup = 12;  // rows of a register tile: 12 x 2 panels are 24 of 32 registers
/// Panels side by side for a tile of r rows: as many as registers hold, for independent sums and streams.
constexpr int tile_panels(int r) { return r <= 6 ? 4 : 2; }

}  // namespace
}  // namespace tessera::cpu
