#pragma once

#include "ops/context.h"

namespace tessera {

enum class NormKind : uint8_t { kRms, kLayer };

/// y = (x - mean) / sqrt(var + eps) * weight + bias (layer), or x / sqrt(mean(x^2) + eps) * weight (RMS). Statistics
/// in f32 over the whole row.
struct NormArgs {
  NormKind kind = NormKind::kRms;
  Tensor x;       ///< [rows, n], floating
  Tensor weight;  ///< f32 [n]
  Tensor bias;    ///< f32 [n] or absent
  float eps = 1e-6f;
  Tensor out;     ///< [rows, n], floating; may be x itself when the dtypes are equal
};

void norm(const OpContext& ctx, const NormArgs& args);

/// For operators whose contract ends in the next norm: its arguments, without x, fit `out`; and the norm of `out`, for
/// where the operator's kernel did not do it. Nothing where `next` has no output.
void check_next_norm(const char* op, const NormArgs& next, const Tensor& out);
void next_norm(const OpContext& ctx, const NormArgs& next, const Tensor& out);

}  // namespace tessera
