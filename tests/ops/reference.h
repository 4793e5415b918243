#pragma once

#include "ops/linear.h"
#include "tests/ops/op_test.h"

/// The operators' definitions, straightforward and in double: what every backend is compared with.
namespace tessera::testing {

/// x w^T.
Matrix ref_product(const Matrix& x, const Matrix& w);
/// Sum of |x| |w| over k for each output: the scale of rounding errors of a product.
Matrix ref_product_magnitude(const Matrix& x, const Matrix& w);
double ref_gelu(double x);
double ref_silu(double x);
Matrix ref_norm(const Matrix& x, NormKind kind, const Matrix& weight, const Matrix* bias, double eps);
/// Softmax attention of one head: q [n, d], k and v [m, d]; query i sees the first visible[i] keys.
Matrix ref_attention(const Matrix& q, const Matrix& k, const Matrix& v, double scale, const std::vector<int64_t>& visible);
Matrix ref_columns(const Matrix& m, int64_t begin, int64_t count);
Matrix ref_rows(const Matrix& m, int64_t begin, int64_t count);
/// Half rotation of [d] numbers in place by cos/sin [d / 2] each.
void ref_rotate(double* x, const double* cos_sin, int64_t d);

}  // namespace tessera::testing
