#include "tests/ops/reference.h"

#include <cmath>

namespace tessera::testing {
namespace {

template <class Term>
Matrix sum_products(const Matrix& x, const Matrix& w, Term term) {
  Matrix y = zeros(x.rows, w.rows, DType::kF32);
  for (int64_t r = 0; r < x.rows; ++r)
    for (int64_t n = 0; n < w.rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < x.cols; ++k) sum += term(x.at(r, k) * w.at(n, k));
      y.at(r, n) = sum;
    }
  return y;
}

}  // namespace

Matrix ref_product(const Matrix& x, const Matrix& w) {
  return sum_products(x, w, [](double p) { return p; });
}

Matrix ref_product_magnitude(const Matrix& x, const Matrix& w) {
  return sum_products(x, w, [](double p) { return std::abs(p); });
}

double ref_gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
double ref_silu(double x) { return x / (1 + std::exp(-x)); }

Matrix ref_norm(const Matrix& x, NormKind kind, const Matrix& weight, const Matrix* bias, double eps) {
  Matrix y = zeros(x.rows, x.cols, DType::kF32);
  const auto n = static_cast<double>(x.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    double mean = 0, squares = 0;
    for (int64_t c = 0; c < x.cols && kind == NormKind::kLayer; ++c) mean += x.at(r, c) / n;
    for (int64_t c = 0; c < x.cols; ++c) squares += (x.at(r, c) - mean) * (x.at(r, c) - mean) / n;
    for (int64_t c = 0; c < x.cols; ++c)
      y.at(r, c) = (x.at(r, c) - mean) / std::sqrt(squares + eps) * weight.values[static_cast<size_t>(c)] +
                   (bias ? bias->values[static_cast<size_t>(c)] : 0);
  }
  return y;
}

Matrix ref_attention(const Matrix& q, const Matrix& k, const Matrix& v, double scale,
                     const std::vector<int64_t>& visible) {
  Matrix out = zeros(q.rows, v.cols, DType::kF32);
  const Matrix scores = ref_product(q, k);
  for (int64_t i = 0; i < q.rows; ++i) {
    double largest = -1e300, sum = 0;
    const int64_t n = visible[static_cast<size_t>(i)];
    for (int64_t j = 0; j < n; ++j) largest = std::max(largest, scores.at(i, j) * scale);
    for (int64_t j = 0; j < n; ++j) {
      const double p = std::exp(scores.at(i, j) * scale - largest);
      sum += p;
      for (int64_t c = 0; c < v.cols; ++c) out.at(i, c) += p * v.at(j, c);
    }
    for (int64_t c = 0; c < v.cols; ++c) out.at(i, c) /= sum;
  }
  return out;
}

Matrix ref_columns(const Matrix& m, int64_t begin, int64_t count) {
  Matrix part = zeros(m.rows, count, m.dtype);
  for (int64_t r = 0; r < m.rows; ++r)
    for (int64_t c = 0; c < count; ++c) part.at(r, c) = m.at(r, begin + c);
  return part;
}

Matrix ref_rows(const Matrix& m, int64_t begin, int64_t count) {
  Matrix part = zeros(count, m.cols, m.dtype);
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = 0; c < m.cols; ++c) part.at(r, c) = m.at(begin + r, c);
  return part;
}

void ref_rotate(double* x, const double* cos_sin, int64_t d) {
  for (int64_t i = 0; i < d / 2; ++i) {
    const double a = x[i], b = x[i + d / 2], c = cos_sin[i], s = cos_sin[i + d / 2];
    x[i] = a * c - b * s;
    x[i + d / 2] = b * c + a * s;
  }
}

}  // namespace tessera::testing
