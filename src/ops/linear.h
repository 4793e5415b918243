#pragma once

#include "ops/context.h"
#include "ops/norm.h"
#include "ops/weight.h"

namespace tessera {

enum class Activation : uint8_t {
  kNone,
  kGelu,     ///< erf form
  kSiluMul,  ///< weight of use kGated: silu(gate) * up, out has rows / 2 columns
};

/// Columns of a row that one pair of LinearArgs' sums stands for.
inline constexpr int64_t kSumColumns = 64;

/// An RMS norm between two products, of the rows that the first one finishes, which they may make in halves: the first leaves
/// its rows times the norm's weight, rounded, and of each row parts of its sum of squares; the second, whose input norm it is,
/// takes those rows for x and divides its sums by the root of the mean square + eps before anything is added to them. Where a
/// backend does not, the norm is made of the first product's rows, which are there either way.
struct PreparedNorm {
  Tensor weight;   ///< f32 [n]
  Tensor rows;     ///< [m, n], room: the second product's input_norm.out
  Tensor squares;  ///< f32, room; kPreparedRows x kPreparedParts are enough for every backend
  int64_t parts =
      0;  ///< of each row, that the first product left in `squares` in its backend's order; 0: it left nothing
};
inline constexpr int64_t kPreparedRows = 64, kPreparedParts = 192;

/// For the operators that prepare a norm of their rows `out`.
void check_prepared(const char* op, const PreparedNorm& norm, const Tensor& out);

/// Of each row of a product the largest column and what its log-softmax needs, as sample() asks for them of greedy rows. A
/// backend that finds them while it makes the product leaves the rows themselves unwritten.
struct FoundChoices {
  Tensor room;            ///< u8; Sizing::sample_workspace_bytes are enough for every backend
  int64_t valid_ids = 0;  ///< of the columns, those that may be chosen; the others count in the softmax alone
  int64_t parts = 0;      ///< of each row, that the product left in `room` in its backend's order; 0: it wrote the rows
};

/// out = residual + scale * act(x W^T + bias), optionally with a norm of x before it or of the finished rows after it. All
/// of this is part of the contract so that a backend can fuse it; it may as well run several kernels.
/// The sum over K runs in an order that does not depend on the number of rows (CPU).
struct LinearArgs {
  Tensor x;                        ///< [m, k], the weight's dtype, or f32, which is rounded to the weight's dtype first
  /// The norm of x that is multiplied in its place; present when `out` is: room [m, k] in the weight's dtype or f32 for
  /// a backend that makes it first. What that holds afterwards is not said. Its own x is ignored. Not with `reduce`.
  NormArgs input_norm;
  const PreparedNorm* prepared = nullptr;  ///< the same norm, for the product ahead may have prepared it; or null
  const Weight* weight = nullptr;  ///< [n, k]
  Tensor bias;                     ///< f32 [n] or absent; for kSiluMul in the order [gate; up]
  Activation activation = Activation::kNone;
  Tensor scale;     ///< f32 [n] or absent: layer scale
  Tensor residual;  ///< [m, n] or absent; may be `out` itself (the usual case: out += ...)
  Tensor out;       ///< [m, n] (kSiluMul: [m, n / 2]), floating
  /// The norm that follows, applied to the rows of `out`: x is ignored, out may have another dtype. kind is read only
  /// when next_norm.out is present.
  NormArgs next_norm;
  /// The norm of the rows of `out` that a later product makes, which this one may prepare; or null. Not with next_norm.
  PreparedNorm* prepares = nullptr;
  /// Where nothing but choices is asked of the rows of `out`, which then need not be written; or null.
  FoundChoices* choices = nullptr;
  /// True for a row-parallel weight: the products are summed over the ranks (rank 0 alone adds bias and residual), then
  /// normed. Requires Activation::kNone.
  bool reduce = false;

  // A LayerNorm that the weight holds: its columns times the norm's weight, each row less its mean, and the norm's bias, through
  // the weight, in `bias`. What is left of the norm is the division by the deviation of x's rows, and that the product ahead
  // prepares. For backends of Precision::folded_norms, all tensors in the weight's dtype, n and k multiples of 32, what is summed of kSumColumns.
  /// f32 [m, 2 k / kSumColumns] or absent: of each kSumColumns columns of x the sum and the sum of squares. Given: the products
  /// of a row are divided by sqrt(variance of x's row + x_eps) before anything is added to them. Not with residual or scale.
  Tensor x_sums;
  float x_eps = 0;
  /// f32 [m, 2 n / kSumColumns] or absent: room for these sums of `out`'s rows, as they are stored. With a residual, and no
  /// activation.
  Tensor out_sums;
};

void linear(const OpContext& ctx, const LinearArgs& args);
/// The checks of linear, for the operators that a product is part of.
void check(const LinearArgs& args);

/// The part of linear's contract after the product, for sums that were made elsewhere: out = residual + scale * (x + bias), norm.
struct EpilogueArgs {
  Tensor x;         ///< [m, n]
  Tensor bias;      ///< f32 [n] or absent
  Tensor scale;     ///< f32 [n] or absent
  Tensor residual;  ///< [m, n] or absent
  Tensor out;       ///< [m, n]
  NormArgs next_norm;
};

void epilogue(const OpContext& ctx, const EpilogueArgs& args);

}  // namespace tessera
