#include "vision/resample_kernels.h"

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12's own header: its "undefined" vectors
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#define TESSERA_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

namespace tessera {
namespace {

// A word is four 8-bit values; vpdpbusd adds the four products of unsigned pixels and signed weights. A
// weight is split into three signed digits of base 256, lowest first.
constexpr int kRows = 16;

void split_weights(const int32_t* weights, uint32_t* words) {
  for (int plane = 0; plane < 3; ++plane) words[plane] = 0;
  for (int i = 0; i < 4; ++i) {
    int32_t rest = weights[i];
    for (int plane = 0; plane < 3; ++plane) {
      const int8_t digit = static_cast<int8_t>(rest & 0xff);
      words[plane] |= static_cast<uint32_t>(static_cast<uint8_t>(digit)) << (8 * i);
      rest = (rest - digit) / 256;  // exact
    }
  }
}

inline __m128i load_16(const uint8_t* bytes) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}

TESSERA_AVX512 inline __m512i load_four_rows(const uint8_t* const* strip, int q, size_t at) {
  __m512i v = _mm512_castsi128_si512(load_16(strip[q] + at));
  v = _mm512_mask_broadcast_i32x4(v, 0x00f0, load_16(strip[q + 4] + at));
  v = _mm512_mask_broadcast_i32x4(v, 0x0f00, load_16(strip[q + 8] + at));
  return _mm512_mask_broadcast_i32x4(v, 0xf000, load_16(strip[q + 12] + at));
}

TESSERA_AVX512 void gather(const uint8_t* const* strip, int width, uint32_t* words) {
  // Four pixels of a row become [R0..R3, G0..G3, B0..B3, -]; lane l of vector q holds row 4 l + q, so that
  // three rounds of unpacking leave each channel's words in row order.
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
  for (int x = 0; x < width; x += 4) {
    const size_t at = size_t{3} * x;
    __m512i row[4];
    for (int q = 0; q < 4; ++q) row[q] = _mm512_shuffle_epi8(load_four_rows(strip, q, at), order);
    const __m512i rg01 = _mm512_unpacklo_epi32(row[0], row[1]), rg23 = _mm512_unpacklo_epi32(row[2], row[3]);
    const __m512i b01 = _mm512_unpackhi_epi32(row[0], row[1]), b23 = _mm512_unpackhi_epi32(row[2], row[3]);
    uint32_t* out = words + static_cast<size_t>(x / 4) * 3 * kRows;
    _mm512_storeu_si512(out, _mm512_unpacklo_epi64(rg01, rg23));
    _mm512_storeu_si512(out + kRows, _mm512_unpackhi_epi64(rg01, rg23));
    _mm512_storeu_si512(out + 2 * kRows, _mm512_unpacklo_epi64(b01, b23));
  }
}

TESSERA_AVX512 inline __m512i broadcast(uint32_t word) {
  return _mm512_set1_epi32(static_cast<int>(word));
}

// a0 + a1 * 2^8 + a2 * 2^16, rounded to a pixel (not yet clamped). The rounding term is already in a0.
TESSERA_AVX512 inline __m512i to_pixels(__m512i a0, __m512i a1, __m512i a2) {
  const __m512i upper = _mm512_slli_epi32(_mm512_add_epi32(a1, _mm512_slli_epi32(a2, 8)), 8);
  return _mm512_srai_epi32(_mm512_add_epi32(a0, upper), 22);
}

// Clamps four vectors to bytes; lane l of the result holds lane l of a, b, c and d.
TESSERA_AVX512 inline __m512i pack_pixels(__m512i a, __m512i b, __m512i c, __m512i d) {
  return _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}

TESSERA_AVX512 void horizontal(const uint32_t* words, const int32_t* first, const uint32_t* weights,
                               int count, int out, size_t channel_stride, uint32_t* const* results) {
  const __m512i half = _mm512_set1_epi32(1 << 21), zero = _mm512_setzero_si512();
  for (int o = 0; o < out; o += 4) {
    __m512i pixels[3][4];
    for (int j = 0; j < 4; ++j) {
      __m512i a0[3] = {half, half, half}, a1[3] = {zero, zero, zero}, a2[3] = {zero, zero, zero};
      const uint32_t* word = words + static_cast<size_t>(first[o + j]) * 3 * kRows;
      for (int i = 0; i < count; ++i, weights += 3, word += 3 * kRows) {
        const __m512i w0 = broadcast(weights[0]), w1 = broadcast(weights[1]), w2 = broadcast(weights[2]);
        for (int c = 0; c < 3; ++c) {
          const __m512i v = _mm512_loadu_si512(word + c * kRows);
          a0[c] = _mm512_dpbusd_epi32(a0[c], v, w0);
          a1[c] = _mm512_dpbusd_epi32(a1[c], v, w1);
          a2[c] = _mm512_dpbusd_epi32(a2[c], v, w2);
        }
      }
      for (int c = 0; c < 3; ++c) pixels[c][j] = to_pixels(a0[c], a1[c], a2[c]);
    }
    for (int c = 0; c < 3; ++c) {
      const __m512i packed = pack_pixels(pixels[c][0], pixels[c][1], pixels[c][2], pixels[c][3]);
      const size_t at = c * channel_stride + o;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(results[0] + at), _mm512_castsi512_si128(packed));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(results[1] + at), _mm512_extracti32x4_epi32(packed, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(results[2] + at), _mm512_extracti32x4_epi32(packed, 2));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(results[3] + at), _mm512_extracti32x4_epi32(packed, 3));
    }
  }
}

TESSERA_AVX512 void interleave(const uint8_t* const* rows, size_t bytes, uint32_t* words) {
  for (size_t i = 0; i < bytes; i += 16) {
    __m512i word = _mm512_cvtepu8_epi32(load_16(rows[0] + i));
    for (int r = 1; r < 4; ++r) {
      const __m512i v = _mm512_cvtepu8_epi32(load_16(rows[r] + i));
      word = _mm512_or_si512(word, _mm512_slli_epi32(v, 8 * r));
    }
    _mm512_storeu_si512(words + i, word);
  }
}

TESSERA_AVX512 void vertical(const uint32_t* const* word_rows, const uint32_t* weights, int count,
                             size_t lanes, uint8_t* out) {
  const __m512i lane_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (size_t x = 0; x < lanes; x += 64) {
    __m512i a0[4], a1[4], a2[4];
    for (int v = 0; v < 4; ++v) {
      a0[v] = _mm512_set1_epi32(1 << 21);
      a1[v] = a2[v] = _mm512_setzero_si512();
    }
    for (int i = 0; i < count; ++i) {
      const __m512i w0 = broadcast(weights[3 * i]), w1 = broadcast(weights[3 * i + 1]);
      const __m512i w2 = broadcast(weights[3 * i + 2]);
      for (int v = 0; v < 4; ++v) {
        const __m512i word = _mm512_loadu_si512(word_rows[i] + x + 16 * v);
        a0[v] = _mm512_dpbusd_epi32(a0[v], word, w0);
        a1[v] = _mm512_dpbusd_epi32(a1[v], word, w1);
        a2[v] = _mm512_dpbusd_epi32(a2[v], word, w2);
      }
    }
    const __m512i packed = pack_pixels(to_pixels(a0[0], a1[0], a2[0]), to_pixels(a0[1], a1[1], a2[1]),
                                       to_pixels(a0[2], a1[2], a2[2]), to_pixels(a0[3], a1[3], a2[3]));
    _mm512_storeu_si512(out + x, _mm512_permutexvar_epi32(lane_order, packed));
  }
}

}  // namespace

const ResampleKernels* avx512_resample_kernels() {
  static const ResampleKernels kernels{.group = 4,
                                       .rows = kRows,
                                       .planes = 3,
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
const ResampleKernels* avx512_resample_kernels() {
  return nullptr;
}
}  // namespace tessera
#endif
