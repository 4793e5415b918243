#pragma once

#include "ops/weight.h"

namespace tessera::cuda {

/// How a weight lies in device memory: row-major, each row padded with zeros to a multiple of 16 bytes (so that every
/// row starts aligned for vector loads), rows padded to a multiple of 64 (an odd vocabulary of 151674 rows costs
/// cuBLASLt half of its speed). A gated weight interleaves gate and up in groups of 8 rows (gate 0-7, up 0-7, gate
/// 8-15, ...): 8 is the width of a tensor core's accumulator tile, so one thread holds both factors of silu(g) * u.
struct PackedShape {
  int64_t rows = 0;  ///< padded
  int64_t cols = 0;  ///< padded: the leading dimension, elements
  size_t expert_bytes = 0;
  size_t bytes = 0;
};

inline constexpr int64_t kRowPadding = 64;
inline constexpr int64_t kGateGroup = 8;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

inline PackedShape packed_shape(const LinearSpec& spec) {
  PackedShape packed;
  const int64_t rows =
      spec.use == WeightUse::kGated ? 2 * round_up(spec.rows / 2, kGateGroup) : spec.rows;
  packed.rows = round_up(rows, kRowPadding);
  packed.cols = round_up(spec.cols, 16 / static_cast<int64_t>(size_of(spec.dtype)));
  packed.expert_bytes = static_cast<size_t>(packed.rows * packed.cols) * size_of(spec.dtype);
  packed.bytes = packed.expert_bytes * static_cast<size_t>(spec.experts);
  return packed;
}

/// Where row r of a checkpoint's [gate; up] (gated weights, `half` rows each) lies in the packed form.
constexpr int64_t gated_row(int64_t r, int64_t half) {
  const bool up = r >= half;
  const int64_t j = up ? r - half : r;
  return j / kGateGroup * (2 * kGateGroup) + (up ? kGateGroup : 0) + j % kGateGroup;
}

}  // namespace tessera::cuda
