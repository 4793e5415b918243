#pragma once

#include "backends/cuda/launch.h"
#include "backends/cuda/plain/epilogue_math.h"
#include "ops/norm.h"

namespace tessera::cuda {

/// Raw rows of a product to finished rows, and the norm that follows, in one pass over memory.
struct FinishParams {
  plain::Elements x;        ///< [m, n] raw sums
  EpilogueParams end;       ///< out.data null: x is already finished, only the norm is made
  bool gelu = false;
  bool norm = false, layer = false;
  const float* norm_weight = nullptr;
  const float* norm_bias = nullptr;
  float eps = 0;
  plain::Elements norm_out;
  // See LinearArgs::x_sums and out_sums: [m, x_columns / 64] and [m, n / 64], or null.
  const float2* x_sums = nullptr;
  int64_t x_columns = 0;
  float x_eps = 0;
  float2* out_sums = nullptr;
  int64_t n = 0;
  /// Not 0 (norm_rows alone): a row is 2 x 2 patches of x, whose tiles have fold_side of them along an edge and a class token
  /// before them (PixelShuffleArgs; transposed: its version 1).
  int fold_side = 0;
  bool fold_transposed = false;
  int64_t rows = 0;  ///< finish_rows fills it in
};

/// The widest row that finish_rows norms (it holds the row in registers), and norm_rows.
inline constexpr int64_t kMaxNormColumns = 8192, kMaxManyColumns = 16384;
/// Whether vector accesses of 4 elements may be used on these rows.
bool vector_rows(const Tensor& t);

/// Whether rows may be read and written 16 bytes at a time.
inline bool vectors16(const plain::Elements& e) {
  return reinterpret_cast<uintptr_t>(e.data) % 16 == 0 && e.stride % (e.dtype == DType::kF32 ? 4 : 8) == 0;
}

/// Requires: n a multiple of 4, vector_rows of all tensors, n <= kMaxNormColumns when norm or sums of rows are made or read.
void finish_rows(Stream& stream, int64_t rows, const FinishParams& p);
/// The same for 16-bit rows that no norm follows, at the memory's speed: whether it serves these, and it itself (p.rows filled in).
bool half_rows_serves(const FinishParams& p);
void half_rows(Stream& stream, const FinishParams& p);
/// Norms alone, to 16-bit rows: likewise.
bool norm_rows_serves(const FinishParams& p);
void norm_rows(Stream& stream, const FinishParams& p);
/// raw [m, 2 n] of a gated product, interleaved as the weight's rows: out = silu(gate) * up.
void finish_gated_rows(Stream& stream, int64_t rows, const plain::Elements& raw, const EpilogueParams& end);
/// x rounded to 16 bits, for products that take an f32 input; columns [n, padded) become zero.
void convert_rows(Stream& stream, const Tensor& x, const plain::Elements& out, int64_t padded);

/// Fills the norm's part from the arguments; x's part where `x` is given.
void set_norm(FinishParams& p, const NormArgs& norm);

}  // namespace tessera::cuda
