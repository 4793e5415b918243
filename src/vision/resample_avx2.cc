#include "vision/resample_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TESSERA_AVX2 __attribute__((target("avx2")))

namespace tessera {
namespace {

// A word is two 16-bit values; vpmaddwd multiplies and adds the pair. A weight is split as high * 2^15 + low
// with low in 0..2^15-1, and 255 * 2^15 * 2 fits the 32-bit pair sum.
constexpr int kLowBits = 15;
constexpr int kRows = 8;

void split_weights(const int32_t* weights, uint32_t* words) {
  uint32_t low = 0, high = 0;
  for (int i = 0; i < 2; ++i) {
    low |= static_cast<uint32_t>(weights[i] & ((1 << kLowBits) - 1)) << (16 * i);
    high |= (static_cast<uint32_t>(weights[i] >> kLowBits) & 0xffff) << (16 * i);
  }
  words[0] = low;
  words[1] = high;
}

TESSERA_AVX2 inline __m256i load_two_rows(const uint8_t* low, const uint8_t* high) {
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low));
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
}

TESSERA_AVX2 void gather(const uint8_t* const* strip, int width, uint32_t* words) {
  // Four pixels of a row become [R0 R2 R1 R3, G0 G2 G1 G3, B0 B2 B1 B3, -]: then a mask gives the 16-bit pair
  // (0, 1) and a shift the pair (2, 3).
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11, -1, -1, -1, -1));
  const __m256i even_bytes = _mm256_set1_epi32(0x00ff00ff);
  for (int x = 0; x < width; x += 4) {
    const size_t at = size_t{3} * x;
    __m256i row[4];
    for (int q = 0; q < 4; ++q)
      row[q] = _mm256_shuffle_epi8(load_two_rows(strip[q] + at, strip[q + 4] + at), order);
    const __m256i rg01 = _mm256_unpacklo_epi32(row[0], row[1]), rg23 = _mm256_unpacklo_epi32(row[2], row[3]);
    const __m256i b01 = _mm256_unpackhi_epi32(row[0], row[1]), b23 = _mm256_unpackhi_epi32(row[2], row[3]);
    const __m256i channel[3] = {_mm256_unpacklo_epi64(rg01, rg23), _mm256_unpackhi_epi64(rg01, rg23),
                                _mm256_unpacklo_epi64(b01, b23)};
    uint32_t* out = words + static_cast<size_t>(x / 2) * 3 * kRows;
    for (int c = 0; c < 3; ++c) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c * kRows),
                          _mm256_and_si256(channel[c], even_bytes));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (3 + c) * kRows),
                          _mm256_and_si256(_mm256_srli_epi32(channel[c], 8), even_bytes));
    }
  }
}

TESSERA_AVX2 inline __m256i broadcast(uint32_t word) {
  return _mm256_set1_epi32(static_cast<int>(word));
}

// low + high * 2^15, rounded to a pixel (not yet clamped). The rounding term is already in low.
TESSERA_AVX2 inline __m256i to_pixels(__m256i low, __m256i high) {
  return _mm256_srai_epi32(_mm256_add_epi32(low, _mm256_slli_epi32(high, kLowBits)), 22);
}

TESSERA_AVX2 void horizontal(const uint32_t* words, const int32_t* first, const uint32_t* weights, int count,
                             int out, size_t channel_stride, uint32_t* const* results) {
  const __m256i half = _mm256_set1_epi32(1 << 21), zero = _mm256_setzero_si256();
  const __m256i white = _mm256_set1_epi16(255);
  for (int o = 0; o < out; o += 4) {
    __m256i pixels[3][4];
    for (int j = 0; j < 4; ++j) {
      __m256i low[3] = {half, half, half}, high[3] = {zero, zero, zero};
      const uint32_t* word = words + static_cast<size_t>(first[o + j]) * 3 * kRows;
      for (int i = 0; i < count; ++i, weights += 2, word += 3 * kRows) {
        const __m256i low_weight = broadcast(weights[0]), high_weight = broadcast(weights[1]);
        for (int c = 0; c < 3; ++c) {
          const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(word + c * kRows));
          low[c] = _mm256_add_epi32(low[c], _mm256_madd_epi16(v, low_weight));
          high[c] = _mm256_add_epi32(high[c], _mm256_madd_epi16(v, high_weight));
        }
      }
      for (int c = 0; c < 3; ++c) pixels[c][j] = to_pixels(low[c], high[c]);
    }
    for (int c = 0; c < 3; ++c) {
      const __m256i ab = _mm256_min_epu16(_mm256_packus_epi32(pixels[c][0], pixels[c][1]), white);
      const __m256i cd = _mm256_min_epu16(_mm256_packus_epi32(pixels[c][2], pixels[c][3]), white);
      const __m256 abf = _mm256_castsi256_ps(ab), cdf = _mm256_castsi256_ps(cd);
      const __m256i even =
          _mm256_castps_si256(_mm256_shuffle_ps(abf, cdf, 0x88));  // rows 0 1 | 4 5 of a b c d
      const __m256i odd = _mm256_castps_si256(_mm256_shuffle_ps(abf, cdf, 0xdd));  // rows 2 3 | 6 7
      const size_t at = c * channel_stride + o;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(results[0] + at), _mm256_castsi256_si128(even));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(results[1] + at), _mm256_castsi256_si128(odd));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(results[2] + at), _mm256_extracti128_si256(even, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(results[3] + at), _mm256_extracti128_si256(odd, 1));
    }
  }
}

TESSERA_AVX2 void interleave(const uint8_t* const* rows, size_t bytes, uint32_t* words) {
  for (size_t i = 0; i < bytes; i += 8) {
    const __m256i a = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[0] + i)));
    const __m256i b = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[1] + i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + i), _mm256_or_si256(a, _mm256_slli_epi32(b, 16)));
  }
}

TESSERA_AVX2 void vertical(const uint32_t* const* word_rows, const uint32_t* weights, int count, size_t lanes,
                           uint8_t* out) {
  const __m256i lane_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (size_t x = 0; x < lanes; x += 32) {
    __m256i low[4], high[4];
    for (int v = 0; v < 4; ++v) {
      low[v] = _mm256_set1_epi32(1 << 21);
      high[v] = _mm256_setzero_si256();
    }
    for (int i = 0; i < count; ++i) {
      const __m256i low_weight = broadcast(weights[2 * i]), high_weight = broadcast(weights[2 * i + 1]);
      for (int v = 0; v < 4; ++v) {
        const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(word_rows[i] + x + 8 * v));
        low[v] = _mm256_add_epi32(low[v], _mm256_madd_epi16(word, low_weight));
        high[v] = _mm256_add_epi32(high[v], _mm256_madd_epi16(word, high_weight));
      }
    }
    const __m256i ab = _mm256_packus_epi32(to_pixels(low[0], high[0]), to_pixels(low[1], high[1]));
    const __m256i cd = _mm256_packus_epi32(to_pixels(low[2], high[2]), to_pixels(low[3], high[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + x),
                        _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), lane_order));
  }
}

}  // namespace

const ResampleKernels* avx2_resample_kernels() {
  static const ResampleKernels kernels{.group = 2,
                                       .rows = kRows,
                                       .planes = 2,
                                       .split_weights = split_weights,
                                       .gather = gather,
                                       .horizontal = horizontal,
                                       .interleave = interleave,
                                       .vertical = vertical};
  return &kernels;
}

}  // namespace tessera

#else
namespace tessera {
const ResampleKernels* avx2_resample_kernels() {
  return nullptr;
}
}  // namespace tessera
#endif
