// Products of bf16 by dot-product instructions (vdpbf16ps): two k a step, f32 sums.
#include <cstring>

#include "backends/cpu/isa/kernels.h"
#include "backends/cpu/isa/pack_pairs.h"
#include "backends/cpu/isa/tiles.h"

namespace tessera::cpu {
namespace {

constexpr int kGroup = 12;
constexpr int tile_panels(int r) { return r <= 6 ? 4 : 2; }

inline __m512bh as_pairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }

// Two neighbours of a row, which may begin at any bf16.
inline int32_t pair_at(const char* a) {
  int32_t pair;
  std::memcpy(&pair, a, sizeof pair);
  return pair;
}

/// Pairs of k that are asked for ahead of the sums, about 1 KiB of each panel; a product with one row waits for memory and
/// looks further.
constexpr int64_t ahead(int rows) { return rows == 1 ? 32 : 16; }

template <int R, int P>
struct Sums {
  __m512 sum[R][P];

  /// The next `pairs` pairs of k; `fetch` runs ahead of the panels.
  void add(const char*& a, const char* (&b)[P], const char* (&fetch)[P], int64_t pairs, int64_t k_stride) {
    for (int64_t i = 0; i < pairs; ++i, a += R * sizeof(int32_t)) {
      __m512bh pair[P];
      for (int p = 0; p < P; ++p) {
        _mm_prefetch(fetch[p], _MM_HINT_T0);
        pair[p] = as_pairs(_mm512_loadu_si512(b[p]));
        b[p] += k_stride;
        fetch[p] += k_stride;
      }
      for (int r = 0; r < R; ++r) {
        const __m512bh x = as_pairs(_mm512_set1_epi32(pair_at(a + r * sizeof(int32_t))));
        for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], x, pair[p]);
      }
    }
  }
};

template <int R, int P>
void tile(const void* packed, int64_t k, const void* const* panels, const void* const* next, int64_t k_stride, float* c,
          int64_t ldc, bool accumulate) {
  const char* a = static_cast<const char*>(packed);
  const int64_t pairs = k / 2, last = pairs < ahead(R) ? pairs : ahead(R);
  const char *b[P], *fetch[P];
  for (int p = 0; p < P; ++p) {
    b[p] = static_cast<const char*>(panels[p]);
    fetch[p] = b[p] + last * k_stride;
  }
  Sums<R, P> sums;
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p)
      sums.sum[r][p] = accumulate ? _mm512_loadu_ps(c + r * ldc + p * kPanel) : _mm512_setzero_ps();
  sums.add(a, b, fetch, pairs - last, k_stride);
  for (int p = 0; p < P; ++p) fetch[p] = static_cast<const char*>(next[p]);
  sums.add(a, b, fetch, last, k_stride);
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) _mm512_storeu_ps(c + r * ldc + p * kPanel, sums.sum[r][p]);
}

using Tiles = TileSet<kGroup, 4>;

template <int R>
void add_row_tiles(Tiles& tiles) {
  tiles.side_by_side[R] = tile_panels(R);
  tiles.functions[R][0] = tile<R, 1>;
  tiles.functions[R][1] = tile<R, 2>;
  if constexpr (tile_panels(R) >= 4) {
    tiles.functions[R][2] = tile<R, 3>;
    tiles.functions[R][3] = tile<R, 4>;
  }
  if constexpr (R > 1) add_row_tiles<R - 1>(tiles);
}

void multiply(const MultiplyArgs& args) {
  static const Tiles tiles = [] {
    Tiles t{};
    add_row_tiles<kGroup>(t);
    return t;
  }();
  multiply_tiles(args, 2, tiles);
}

void pack_a(const void* x, Element type, int64_t row_stride, int64_t rows, int64_t k, int64_t k_padded, void* a) {
  pack_pairs<kGroup>(x, type, row_stride, rows, k, k_padded, a);
}

constexpr int kChains = 16;

double peak(int64_t rounds) {
  __m512 sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_setzero_ps();
  __m512i a = _mm512_set1_epi16(0x3c00), b = _mm512_set1_epi16(0x3c01);
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile("" : "+v"(a), "+v"(b));  // each round is new to the compiler
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], as_pairs(a), as_pairs(b));
  }
  __m512 all = sum[0];
  for (int i = 1; i < kChains; ++i) all = _mm512_add_ps(all, sum[i]);
  volatile float sink = _mm512_reduce_add_ps(all);
  (void)sink;
  return 4.0 * kChains * kPanel * static_cast<double>(rounds);
}

}  // namespace

const ProductKernels& avx512_bf16_products() {
  static const ProductKernels kProducts = {
      .a_element = 2, .a_group = kGroup, .pack_a = pack_a, .multiply = multiply, .row_is_packed = true, .peak = peak};
  return kProducts;
}

}  // namespace tessera::cpu
