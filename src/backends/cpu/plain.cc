#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/cpu/leaf.h"
#include "core/dtype.h"

// The plain kernels: what every fast path is tested against. Sums are in f32, in ascending order.
namespace tessera::cpu {
namespace {

float load(const void* x, Element type, int64_t i) {
  switch (type) {
    case kElementF32: return static_cast<const float*>(x)[i];
    case kElementBF16: return to_float(static_cast<const bf16*>(x)[i]);
    case kElementF16: return to_float(static_cast<const f16*>(x)[i]);
  }
  return 0;
}

void store(void* out, Element type, int64_t i, float value) {
  switch (type) {
    case kElementF32: static_cast<float*>(out)[i] = value; break;
    case kElementBF16: static_cast<bf16*>(out)[i] = to_bf16(value); break;
    case kElementF16: static_cast<f16*>(out)[i] = to_f16(value); break;
  }
}

// Packed a: rows of f32, after rounding to the panels' type.
template <class T>
void pack_a(const void* x, Element type, int64_t row_stride, int64_t rows, int64_t k, int64_t k_padded, void* a) {
  float* out = static_cast<float*>(a);
  for (int64_t r = 0; r < rows; ++r, out += k_padded) {
    for (int64_t i = 0; i < k; ++i) out[i] = to_float(from_float<T>(load(x, type, r * row_stride + i)));
    std::fill(out + k, out + k_padded, 0.0f);
  }
}

template <class T>
float panel_element(const void* panel, int64_t k_stride, int64_t k, int lane) {
  return to_float(reinterpret_cast<const T*>(static_cast<const char*>(panel) + k * k_stride)[lane]);
}
template <>
float panel_element<bf16>(const void* panel, int64_t k_stride, int64_t k, int lane) {
  return to_float(reinterpret_cast<const bf16*>(static_cast<const char*>(panel) + k / 2 * k_stride)[2 * lane + k % 2]);
}

template <class T>
void multiply(const MultiplyArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    const float* a = static_cast<const float*>(args.a) + r * args.k;
    for (int p = 0; p < args.panel_count; ++p) {
      float* c = args.c + r * args.ldc + int64_t{p} * kPanel;
      float sum[kPanel] = {};
      if (args.accumulate) std::copy(c, c + kPanel, sum);
      for (int64_t k = 0; k < args.k; ++k)
        for (int lane = 0; lane < kPanel; ++lane)
          sum[lane] += a[k] * panel_element<T>(args.panels[p], args.k_stride, k, lane);
      std::copy(sum, sum + kPanel, c);
    }
  }
}

void norm_row(const NormRowArgs& args) {
  const auto n = static_cast<float>(args.n);
  float mean = 0;
  if (args.layer) {
    for (int64_t i = 0; i < args.n; ++i) mean += load(args.x, args.x_type, i);
    mean /= n;
  }
  float squares = 0;
  for (int64_t i = 0; i < args.n; ++i) {
    const float d = load(args.x, args.x_type, i) - mean;
    squares += d * d;
  }
  const float inverse = 1.0f / std::sqrt(squares / n + args.eps);
  for (int64_t i = 0; i < args.n; ++i) {
    const float y = (load(args.x, args.x_type, i) - mean) * inverse * args.weight[i];
    store(args.out, args.out_type, i, args.bias ? y + args.bias[i] : y);
  }
}

float activate(const EpilogueRowArgs& args, int64_t i) {
  const float x = args.c[i] + (args.bias ? args.bias[i] : 0.0f);
  switch (args.activation) {
    case kRowNone: return x;
    case kRowGelu: return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
    case kRowSiluMul: return x / (1.0f + std::exp(-x)) * (args.up[i] + (args.bias_up ? args.bias_up[i] : 0.0f));
  }
  return x;
}

void epilogue_row(const EpilogueRowArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    float y = activate(args, i);
    if (args.scale) y *= args.scale[i];
    if (args.residual) y += load(args.residual, args.residual_type, i);
    store(args.out, args.out_type, i, y);
  }
}

void softmax(const SoftmaxArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    float* s = args.scores + r * args.lds;
    const int32_t visible = args.visible[r];
    float maximum = args.maximum[r];
    for (int32_t i = 0; i < visible; ++i) maximum = std::max(maximum, s[i]);
    float sum = 0;
    for (int32_t i = 0; i < visible; ++i) {
      s[i] = std::exp((s[i] - maximum) * args.scale);
      sum += s[i];
    }
    std::fill(s + visible, s + args.keys, 0.0f);
    const bool first = args.maximum[r] == -std::numeric_limits<float>::infinity();
    args.rescale[r] = first ? (visible ? 0.0f : 1.0f) : std::exp((args.maximum[r] - maximum) * args.scale);
    args.sum[r] = args.sum[r] * args.rescale[r] + sum;
    args.maximum[r] = maximum;
  }
}

void scale_row(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

void store_row(const float* x, int64_t n, float factor, void* out, Element type) {
  for (int64_t i = 0; i < n; ++i) store(out, type, i, x[i] * factor);
}

void load_row(const void* x, Element type, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = load(x, type, i);
}

void transpose_words(const void* x, int64_t stride, int64_t rows, int64_t words, void* panel) {
  constexpr int64_t kWord = 4;
  char* out = static_cast<char*>(panel);
  std::memset(out, 0, static_cast<size_t>(words * kPanel * kWord));
  for (int64_t i = 0; i < words; ++i)
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(out + (i * kPanel + r) * kWord, static_cast<const char*>(x) + r * stride + i * kWord, kWord);
}

int64_t argmax(const float* x, int64_t n) {
  int64_t best = 0;
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] > largest) {
      largest = x[i];
      best = i;
    }
  }
  return best;
}

double sum_exp(const float* x, int64_t n, float maximum) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - maximum);
  return sum;
}

}  // namespace

const LeafKernels& plain_kernels() {
  static constexpr LeafKernels kKernels = {
      .name = "plain",
      .products = {{.a_element = 4, .pack_a = pack_a<float>, .multiply = multiply<float>, .row_is_packed = true},
                   {.a_element = 4, .pack_a = pack_a<bf16>, .multiply = multiply<bf16>},
                   {.a_element = 4, .pack_a = pack_a<f16>, .multiply = multiply<f16>}},
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
