#pragma once

#include <immintrin.h>

#include "backends/cpu/isa/transpose16.h"
#include "backends/cpu/leaf.h"

// Rows of x as bf16 pairs of k; compiled for AVX-512 BF16 (see vec_avx512.h).
namespace tessera::cpu {
namespace {

/// Elements [i, i + 2 n) of a row as n <= 16 pairs; what lies past k is zero.
inline __m512i load_pairs(const void* x, Element type, int64_t i, int64_t k) {
  const int64_t left = k - i;
  if (left <= 0) return _mm512_setzero_si512();
  if (type == kElementF32) {
    const float* p = static_cast<const float*>(x) + i;
    const auto low = static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1);
    const auto high = static_cast<__mmask16>(left >= 32 ? 0xffff : left > 16 ? (1u << (left - 16)) - 1 : 0);
    return reinterpret_cast<__m512i>(
        _mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, p + 16), _mm512_maskz_loadu_ps(low, p)));
  }
  const uint16_t* p = static_cast<const uint16_t*>(x) + i;
  const __mmask32 mask = left >= 32 ? 0xffffffffu : (1u << left) - 1;
  return _mm512_maskz_loadu_epi16(mask, p);
}

/// Groups of rows, [k / 2][rows of the group][2].
template <int Group>
inline void pack_pairs(const void* x, Element type, int64_t row_stride, int64_t rows, int64_t k, int64_t k_padded,
                       void* a) {
  static_assert(Group <= 16);
  int32_t* out = static_cast<int32_t*>(a);
  const int64_t element = type == kElementF32 ? 4 : 2;
  for (int64_t row = 0; row < rows; row += Group) {
    const int64_t count = rows - row < Group ? rows - row : Group;
    const char* first = static_cast<const char*>(x) + row * row_stride * element;
    for (int64_t i = 0; i < k_padded; i += 32) {
      __m512i lines[16];
#pragma GCC unroll 16
      for (int64_t r = 0; r < 16; ++r)
        lines[r] = r < count ? load_pairs(first + r * row_stride * element, type, i, k) : _mm512_setzero_si512();
      transpose16(lines);
      const int64_t pairs = k_padded - i >= 32 ? 16 : (k_padded - i) / 2;
      const auto mask = static_cast<__mmask16>((1u << count) - 1);
      for (int64_t j = 0; j < pairs; ++j, out += count) _mm512_mask_storeu_epi32(out, mask, lines[j]);
    }
  }
}

}  // namespace
}  // namespace tessera::cpu
