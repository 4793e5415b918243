// The vector kernels, compiled once for AVX2 (with FMA and F16C) and once for AVX-512 (TESSERA_ISA names the set). Nothing
// but intrinsics and own functions of internal linkage: see leaf.h.
#if defined(__AVX512F__)
#include "backends/cpu/isa/vec_avx512.h"
#else
#include "backends/cpu/isa/vec_avx2.h"
#endif
#include "backends/cpu/isa/kernels.h"
#include "backends/cpu/isa/tiles.h"

namespace tessera::cpu {
namespace {

constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- products ----

/// c[R, P panels] (+)= a b, a and b as f32 in the registers: each element is one chain of fused multiply-adds over k.
template <Element T, int R, int P>
void tile(const void* packed, int64_t k, const void* const* panels, const void* const*, int64_t k_stride, float* c,
          int64_t ldc, bool accumulate) {
  constexpr int kV = kVectorsPerPanel;
  const float* a = static_cast<const float*>(packed);
  const char* b[P];
  for (int p = 0; p < P; ++p) b[p] = static_cast<const char*>(panels[p]);
  Vec sum[R][P][kV];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < kV; ++v) sum[r][p][v] = accumulate ? v_load(c + r * ldc + p * kPanel + v * kWidth) : v_zero();
  constexpr int64_t kStep = T == kElementBF16 ? 2 : 1;
  constexpr int64_t kAhead = 16;  // k steps: about 1 KiB of each panel
  for (int64_t i = 0; i < k; i += kStep, a += kStep * R) {
    for (int p = 0; p < P; ++p) {
      _mm_prefetch(b[p] + kAhead * k_stride, _MM_HINT_T0);
      Vec first_k[kV], second_k[kV];
      if constexpr (T == kElementBF16)
        panel_load_pair(b[p], first_k, second_k);
      else
        panel_load(b[p], T, first_k);
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < kV; ++v) sum[r][p][v] = v_fma(v_set(a[r]), first_k[v], sum[r][p][v]);
        if constexpr (T == kElementBF16)
          for (int v = 0; v < kV; ++v) sum[r][p][v] = v_fma(v_set(a[R + r]), second_k[v], sum[r][p][v]);
      }
      b[p] += k_stride;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < kV; ++v) v_store(c + r * ldc + p * kPanel + v * kWidth, sum[r][p][v]);
}

using Tiles = TileSet<kGroup, 4>;

template <Element T, int R>
void add_row_tiles(Tiles& tiles) {
  tiles.side_by_side[R] = tile_panels(R);
  tiles.functions[R][0] = tile<T, R, 1>;
  if constexpr (tile_panels(R) >= 2) tiles.functions[R][1] = tile<T, R, 2>;
  if constexpr (tile_panels(R) >= 4) {
    tiles.functions[R][2] = tile<T, R, 3>;
    tiles.functions[R][3] = tile<T, R, 4>;
  }
  if constexpr (R > 1) add_row_tiles<T, R - 1>(tiles);
}

template <Element T>
void multiply(const MultiplyArgs& args) {
  static const Tiles tiles = [] {
    Tiles t{};
    add_row_tiles<T, kGroup>(t);
    return t;
  }();
  multiply_tiles(args, 4, tiles);
}

inline Vec round_as(Vec x, Element type) {
  alignas(64) uint16_t half[kWidth];
  if (type == kElementF32) return x;
  v_store_as(half, type, 0, kWidth, x);
  return v_load_as(half, type, 0, kWidth);
}

/// Groups of rows as f32, [k][rows of the group], rounded to T first.
template <Element T>
void pack_a(const void* x, Element type, int64_t row_stride, int64_t rows, int64_t k, int64_t k_padded, void* a) {
  float* out = static_cast<float*>(a);
  alignas(64) float piece[kGroup][kWidth];
  for (int64_t row = 0; row < rows; row += kGroup) {
    const int64_t count = min(kGroup, rows - row);
    for (int64_t i = 0; i < k_padded; i += kWidth) {
      const int64_t n = i < k ? min(kWidth, k - i) : 0;
      for (int64_t r = 0; r < count; ++r) {
        const Vec v = n > 0 ? v_load_as(x, type, (row + r) * row_stride + i, n) : v_zero();
        v_store(piece[r], type == T ? v : round_as(v, T));
      }
      const int64_t width = min(kWidth, k_padded - i);
      for (int64_t j = 0; j < width; ++j, out += count)
        for (int64_t r = 0; r < count; ++r) out[r] = piece[r][j];
    }
  }
}

constexpr int kChains = 12;

double peak(int64_t rounds) {
  Vec sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = v_set(static_cast<float>(i));
  Vec a = v_set(0.5f), b = v_set(1e-3f);
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile("" : "+x"(a), "+x"(b));  // each round is new to the compiler
    for (int i = 0; i < kChains; ++i) sum[i] = v_fma(sum[i], a, b);
  }
  Vec all = sum[0];
  for (int i = 1; i < kChains; ++i) all = v_add(all, sum[i]);
  volatile float sink = v_sum(all);
  (void)sink;
  return 2.0 * kChains * kWidth * static_cast<double>(rounds);
}

// ---- elementwise ----

/// 2^r for |r| <= 1/2 to about 2e-7 relative, exactly 1 at 0: the minimax polynomial of degree 5 (Remez) with its constant
/// term set to 1.
inline Vec v_exp2_rest(Vec r) {
  Vec p = v_set(1.3276471979479397e-3f);
  p = v_fma(p, r, v_set(9.675541334216184e-3f));
  p = v_fma(p, r, v_set(5.550713273542589e-2f));
  p = v_fma(p, r, v_set(0.24022119723848476f));
  p = v_fma(p, r, v_set(0.6931469670647331f));
  return v_fma(p, r, v_set(1.0f));
}

/// 2^x for x <= 0 whose rounding is not to be mended: softmax's weights. From 2^-126 on down it may stop shrinking.
inline Vec v_exp2_negative(Vec x) {
  const Vec clamped = v_max(x, v_set(-126.0f));
  const Vec n = v_round(clamped);
  return v_scale(v_exp2_rest(v_sub(clamped, n)), n);
}

/// e^x to about 3e-7 relative, about 1e-38 below -87.
inline Vec v_exp(Vec x) {
  const Vec clamped = v_max(v_min(x, v_set(88.0f)), v_set(-87.3f));
  const Vec n = v_round(v_mul(clamped, v_set(1.44269504088896341f)));
  // ln 2 in two parts, so that the rest is exact (Cody and Waite).
  Vec r = v_fma(n, v_set(-0.693359375f), clamped);
  r = v_fma(n, v_set(2.12194440e-4f), r);
  return v_scale(v_exp2_rest(v_mul(r, v_set(1.44269504088896341f))), n);
}

/// erf(x): Abramowitz and Stegun 7.1.26, at most 1.5e-7 off.
inline Vec v_erf(Vec x) {
  const Vec ax = v_abs(x);
  const Vec t = v_div(v_set(1.0f), v_fma(v_set(0.3275911f), ax, v_set(1.0f)));
  Vec p = v_set(1.061405429f);
  p = v_fma(p, t, v_set(-1.453152027f));
  p = v_fma(p, t, v_set(1.421413741f));
  p = v_fma(p, t, v_set(-0.284496736f));
  p = v_fma(p, t, v_set(0.254829592f));
  p = v_mul(p, t);
  const Vec e = v_exp(v_mul(v_sub(v_zero(), ax), ax));
  return v_copysign(v_sub(v_set(1.0f), v_mul(p, e)), x);
}

inline Vec v_gelu(Vec x) {
  return v_mul(v_mul(v_set(0.5f), x), v_add(v_set(1.0f), v_erf(v_mul(x, v_set(0.70710678118654752f)))));
}

inline Vec v_silu(Vec x) { return v_div(x, v_add(v_set(1.0f), v_exp(v_sub(v_zero(), x)))); }

void epilogue_row(const EpilogueRowArgs& args) {
  for (int64_t i = 0; i < args.n; i += kWidth) {
    const int64_t n = min(kWidth, args.n - i);
    const auto at = [&](const float* p) { return v_load_as(p, kElementF32, i, n); };
    Vec y = at(args.c);
    if (args.bias) y = v_add(y, at(args.bias));
    if (args.activation == kRowGelu) y = v_gelu(y);
    if (args.activation == kRowSiluMul) {
      Vec up = at(args.up);
      if (args.bias_up) up = v_add(up, at(args.bias_up));
      y = v_mul(v_silu(y), up);
    }
    if (args.scale) y = v_mul(y, at(args.scale));
    if (args.residual) y = v_add(y, v_load_as(args.residual, args.residual_type, i, n));
    v_store_as(args.out, args.out_type, i, n, y);
  }
}

/// Sum of (x - mean)^power over a row, power 1 or 2, in two interleaved sums of lanes.
template <int Power>
inline float row_sum(const NormRowArgs& args, float mean) {
  const Vec m = v_set(mean);
  Vec sum[2] = {v_zero(), v_zero()};
  for (int64_t i = 0, j = 0; i < args.n; i += kWidth, j ^= 1) {
    const int64_t n = min(kWidth, args.n - i);
    Vec d = v_sub(v_load_as(args.x, args.x_type, i, n), m);
    if (n < kWidth) d = v_keep(d, n, v_zero());
    sum[j] = Power == 1 ? v_add(sum[j], d) : v_fma(d, d, sum[j]);
  }
  return v_sum(v_add(sum[0], sum[1]));
}

void norm_row(const NormRowArgs& args) {
  const float count = static_cast<float>(args.n);
  const float mean = args.layer ? row_sum<1>(args, 0.0f) / count : 0.0f;
  const float inverse = 1.0f / __builtin_sqrtf(row_sum<2>(args, mean) / count + args.eps);
  for (int64_t i = 0; i < args.n; i += kWidth) {
    const int64_t n = min(kWidth, args.n - i);
    Vec y = v_mul(v_sub(v_load_as(args.x, args.x_type, i, n), v_set(mean)), v_set(inverse));
    y = v_mul(y, v_load_as(args.weight, kElementF32, i, n));
    if (args.bias) y = v_add(y, v_load_as(args.bias, kElementF32, i, n));
    v_store_as(args.out, args.out_type, i, n, y);
  }
}

// ---- attention ----

void softmax_row(float* s, int64_t keys, int32_t visible, const SoftmaxArgs& args, int64_t row) {
  const float before = args.maximum[row];
  Vec largest = v_set(before);
  int64_t i = 0;
  for (; i + kWidth <= visible; i += kWidth) largest = v_max(largest, v_load(s + i));
  if (i < visible) largest = v_max(largest, v_keep(v_load(s + i), visible - i, v_set(before)));
  const float maximum = v_largest(largest);
  const float to_exp2 = args.scale * 1.44269504088896341f;
  const Vec m = v_set(maximum), scale = v_set(to_exp2);
  Vec sum = v_zero();
  for (i = 0; i < keys; i += kWidth) {
    Vec p = v_zero();
    if (i < visible) {
      p = v_exp2_negative(v_mul(v_sub(v_load(s + i), m), scale));
      if (visible - i < kWidth) p = v_keep(p, visible - i, v_zero());
    }
    sum = v_add(sum, p);
    v_store(s + i, p);
  }
  const bool untouched = maximum == before;  // no key seen yet, or no larger one
  float rescale = 1.0f;
  if (!untouched) {
    alignas(64) float lanes[kWidth];
    v_store(lanes, v_exp2_negative(v_set((before - maximum) * to_exp2)));
    rescale = before == -__builtin_inff() ? 0.0f : lanes[0];
  }
  args.rescale[row] = rescale;
  args.sum[row] = args.sum[row] * rescale + v_sum(sum);
  args.maximum[row] = maximum;
}

void softmax(const SoftmaxArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) softmax_row(args.scores + r * args.lds, args.keys, args.visible[r], args, r);
}

// ---- rows ----

void scale_row(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t count = min(kWidth, n - i);
    v_store_as(x, kElementF32, i, count, v_mul(v_load_as(x, kElementF32, i, count), v_set(factor)));
  }
}

void store_row(const float* x, int64_t n, float factor, void* out, Element type) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t count = min(kWidth, n - i);
    v_store_as(out, type, i, count, v_mul(v_load_as(x, kElementF32, i, count), v_set(factor)));
  }
}

void load_row(const void* x, Element type, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t count = min(kWidth, n - i);
    v_store_as(out, kElementF32, i, count, v_load_as(x, type, i, count));
  }
}

void transpose_words(const void* x, int64_t stride, int64_t rows, int64_t words, void* panel) {
  for (int64_t i = 0; i < words; i += kPanel)
    transpose_piece(static_cast<const char*>(x) + 4 * i, stride, rows, min(kPanel, words - i),
                    static_cast<char*>(panel) + 4 * kPanel * i);
}

int64_t argmax(const float* x, int64_t n) {
  Best best = best_start();
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) best_take(best, v_load(x + i), i);
  if (i < n) best_take(best, v_keep(v_load_as(x, kElementF32, i, n - i), n - i, v_set(-__builtin_inff())), i);
  float values[kWidth];
  int32_t indices[kWidth];
  best_lanes(best, values, indices);
  int lane = 0;
  for (int j = 1; j < kWidth; ++j)
    if (values[j] > values[lane] || (values[j] == values[lane] && indices[j] < indices[lane])) lane = j;
  return indices[lane];
}

double sum_exp(const float* x, int64_t n, float maximum) {
  constexpr int64_t kPiece = 4096;  // f32 sums of lanes stay short
  const Vec m = v_set(maximum);
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t end = min(n, begin + kPiece);
    Vec lanes = v_zero();
    for (int64_t i = begin; i < end; i += kWidth) {
      const int64_t count = min(kWidth, end - i);
      const Vec e = v_exp(v_sub(v_load_as(x, kElementF32, i, count), m));
      lanes = v_add(lanes, count < kWidth ? v_keep(e, count, v_zero()) : e);
    }
    sum += static_cast<double>(v_sum(lanes));
  }
  return sum;
}

}  // namespace

const LeafKernels& TESSERA_ISA_FUNCTION() {
  static const LeafKernels kKernels = {
      .name = TESSERA_ISA_NAME,
      .products = {{.a_element = 4, .a_group = kGroup, .pack_a = pack_a<kElementF32>, .multiply = multiply<kElementF32>, .row_is_packed = true, .peak = peak},
                   {.a_element = 4, .a_group = kGroup, .pack_a = pack_a<kElementBF16>, .multiply = multiply<kElementBF16>, .peak = peak},
                   {.a_element = 4, .a_group = kGroup, .pack_a = pack_a<kElementF16>, .multiply = multiply<kElementF16>, .peak = peak}},
      .norm_row = norm_row,
      .epilogue_row = epilogue_row,
      .softmax = softmax,
      .scale_row = scale_row,
      .store_row = store_row,
      .transpose_words = transpose_words,
      .load_row = load_row,
      .argmax = argmax,
      .sum_exp = sum_exp,
  };
  return kKernels;
}

}  // namespace tessera::cpu
