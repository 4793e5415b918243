#pragma once

#include <cmath>

#include "backends/cuda/plain/portable.h"
#include "ops/linear.h"

namespace tessera::cuda {

/// What a product's kernel does with a finished sum: out = residual + scale * act(sum + bias). Shared by all families.
struct EpilogueParams {
  const float* bias = nullptr;   ///< [gate; up] for gated weights
  const float* scale = nullptr;
  plain::Elements residual;      ///< data null: none
  plain::Elements out;
  int64_t columns = 0;           ///< of out
  /// Not 0: rows come in segments of this many and land one row further in each (a tile's class token is row 0), while
  /// the residual is one segment that all share, after its own row 0 (the positions of a patch embedding).
  int64_t segment = 0;

  TESSERA_DEVICE int64_t out_row(int64_t row) const { return segment ? row + row / segment + 1 : row; }
  TESSERA_DEVICE int64_t residual_row(int64_t row) const { return segment ? row % segment + 1 : row; }
};

/// The erf form, as the reference computes it.
TESSERA_DEVICE float gelu(float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f)); }
TESSERA_DEVICE float silu(float v) { return v / (1.0f + expf(-v)); }

inline EpilogueParams epilogue_params(const LinearArgs& args) {
  EpilogueParams p{.bias = args.bias.ptr<float>(), .scale = args.scale.ptr<float>()};
  if (args.residual) p.residual = plain::elements(args.residual);
  p.out = plain::elements(args.out);
  p.columns = args.out.row_elements();
  return p;
}

}  // namespace tessera::cuda
