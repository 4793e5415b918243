#pragma once

#include <cstdint>

namespace tessera::cuda {

/// How a product of up to 64 rows is spread over the device (gemm/narrow_linear.cu).
struct NarrowShape {
  int columns = 0;     ///< of wgmma: the tokens rounded up to 16, 32 or 64
  int rows = 0;        ///< of the weight in a slab, a multiple of 16
  int box_rows = 0, boxes = 0;  ///< bulk copies of a slab's step
  int cluster = 1;     ///< blocks that share a slab's K
  int slabs = 0;
  int blocks = 0;      ///< persistent; a multiple of cluster
  int stages = 0;      ///< of the ring: x's and the slab's rows, 128 bytes each
  int sum_stride = 0;  ///< floats between tokens of the slab's sums
  int64_t shared_bytes = 0;
};

/// A pure function: of all ways to cut the weight the one whose slowest multiprocessor ends first, by what it takes from
/// memory and from L2. Requires: 1 <= m <= 64, rows a multiple of 64.
NarrowShape narrow_shape(int64_t m, int64_t rows, int64_t k, int64_t multiprocessors, bool gated);

}  // namespace tessera::cuda
