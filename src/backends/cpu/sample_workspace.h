#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace tessera::cpu {

/// Rows that are sampled at the same time, each with an i32 a vocabulary entry for sorting.
inline int64_t sample_lanes(int64_t rows) { return std::min<int64_t>(rows, 16); }

inline size_t sample_workspace(int64_t rows, int64_t vocab) {
  return static_cast<size_t>(sample_lanes(rows) * vocab) * sizeof(int32_t);
}

}  // namespace tessera::cpu
