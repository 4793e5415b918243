#pragma once

#include <immintrin.h>

#include "backends/cpu/leaf.h"

// Eight floats; see vec_avx512.h.
namespace tessera::cpu {
namespace {

using Vec = __m256;
constexpr int64_t kWidth = 8;

inline Vec v_set(float x) { return _mm256_set1_ps(x); }
inline Vec v_zero() { return _mm256_setzero_ps(); }
inline Vec v_load(const float* p) { return _mm256_loadu_ps(p); }
inline void v_store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline Vec v_add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec v_sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec v_mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec v_div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec v_max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec v_min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec v_fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec sign_bits() { return _mm256_set1_ps(-0.0f); }
inline Vec v_abs(Vec x) { return _mm256_andnot_ps(sign_bits(), x); }
inline Vec v_copysign(Vec a, Vec b) { return _mm256_or_ps(v_abs(a), _mm256_and_ps(sign_bits(), b)); }
inline Vec v_round(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec v_scale(Vec x, Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline float v_sum(Vec x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float v_largest(Vec x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

inline __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec v_keep(Vec x, int64_t n, Vec other) { return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(first(n))); }

inline __m128i to_half(Vec x, Element type) {
  if (type == kElementF16) return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  const __m256i high = _mm256_srli_epi32(
      _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), nan)), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

inline Vec from_half(__m128i half, Element type) {
  if (type == kElementF16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

inline Vec v_load_as(const void* p, Element type, int64_t i, int64_t n) {
  if (type == kElementF32) {
    const float* f = static_cast<const float*>(p) + i;
    return n >= kWidth ? v_load(f) : _mm256_maskload_ps(f, first(n));
  }
  const uint16_t* h = static_cast<const uint16_t*>(p) + i;
  if (n >= kWidth) return from_half(_mm_loadu_si128(reinterpret_cast<const __m128i*>(h)), type);
  alignas(16) uint16_t rest[8] = {};
  for (int64_t j = 0; j < n; ++j) rest[j] = h[j];
  return from_half(_mm_load_si128(reinterpret_cast<const __m128i*>(rest)), type);
}

inline void v_store_as(void* p, Element type, int64_t i, int64_t n, Vec x) {
  if (type == kElementF32) {
    float* f = static_cast<float*>(p) + i;
    if (n >= kWidth) return v_store(f, x);
    return _mm256_maskstore_ps(f, first(n), x);
  }
  uint16_t* h = static_cast<uint16_t*>(p) + i;
  if (n >= kWidth) return _mm_storeu_si128(reinterpret_cast<__m128i*>(h), to_half(x, type));
  alignas(16) uint16_t rest[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(rest), to_half(x, type));
  for (int64_t j = 0; j < n; ++j) h[j] = rest[j];
}

inline void panel_load(const char* b, Element type, Vec out[2]) {
  for (int v = 0; v < 2; ++v)
    out[v] = type == kElementF32 ? _mm256_loadu_ps(reinterpret_cast<const float*>(b) + 8 * v)
                                 : _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b) + v));
}
inline void panel_load_pair(const char* b, Vec even[2], Vec odd[2]) {
  for (int v = 0; v < 2; ++v) {
    const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b) + v);
    even[v] = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
    odd[v] = _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
}

/// Eight rows of eight 32-bit elements, transposed in place.
inline void transpose8(__m256 r[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

/// Words [0, n) of up to sixteen rows, n <= 16, into n lines of sixteen; see LeafKernels::transpose_words.
inline void transpose_piece(const char* x, int64_t stride, int64_t rows, int64_t n, char* out) {
  for (int64_t half = 0; half < 2; ++half)
    for (int64_t word = 0; word < n; word += 8) {
      __m256 lines[8];
      for (int64_t r = 0; r < 8; ++r) {
        const int64_t row = 8 * half + r;
        const float* at = reinterpret_cast<const float*>(x + row * stride) + word;
        lines[r] = row < rows ? _mm256_maskload_ps(at, first(n - word)) : _mm256_setzero_ps();
      }
      transpose8(lines);
      for (int64_t i = 0; i < 8 && word + i < n; ++i)
        _mm256_storeu_ps(reinterpret_cast<float*>(out + 64 * (word + i) + 32 * half), lines[i]);
    }
}

struct Best {
  Vec value;
  __m256i index;
};
inline Best best_start() { return {v_set(-__builtin_inff()), _mm256_setzero_si256()}; }
inline void best_take(Best& best, Vec x, int64_t i) {
  const __m256i at = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(static_cast<int>(i)));
  const __m256 larger = _mm256_cmp_ps(x, best.value, _CMP_GT_OQ);
  best.value = _mm256_blendv_ps(best.value, x, larger);
  best.index = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(best.index), _mm256_castsi256_ps(at), larger));
}
inline void best_lanes(const Best& best, float* values, int32_t* indices) {
  v_store(values, best.value);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices), best.index);
}

constexpr int kVectorsPerPanel = 2;
constexpr int kGroup = 6;  // 6 x 1 panel are 12 of 16 registers
constexpr int tile_panels(int r) { return r == 1 ? 4 : r <= 3 ? 2 : 1; }

}  // namespace
}  // namespace tessera::cpu
