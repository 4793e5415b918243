#pragma once

#include <cstdint>
#include <optional>

namespace tessera::cuda {

/// How a product of up to 64 rows is spread over the device (gemm/narrow_linear.cu).
struct NarrowShape {
  int columns = 0;     ///< of wgmma: the tokens rounded up to 16, 32 or 64
  int rows = 0;        ///< of the weight in a slab, a multiple of 16
  int box_rows = 0, boxes = 0;  ///< bulk copies of a slab's step
  int cluster = 1;     ///< blocks that share a slab's K
  int slabs = 0;
  int blocks = 0;      ///< a multiple of cluster; persistent unless they send
  int stages = 0;      ///< of the weight's ring: 128 bytes of each of the slab's rows; a slab has no fewer steps
  int x_stages = 0;    ///< of x's: 128 bytes of each token, no more than `stages`
  bool gated = false;  ///< gates and ups meet, and go through shared memory behind the ring
  bool sends = false;  ///< sums meet in shared memory; each block then has one slab
  bool sums_apart = false;  ///< the room for what others send lies behind the ring; else it takes the ring's place
  int sent_bytes = 0;       ///< of sums of the rows that a block ends, from all of the cluster
  int beside_bytes = 0;     ///< room ahead of the ring for what the sums meet that a block finishes: a number each
  int64_t shared_bytes = 0;
};

/// A token's products of gates and ups on their way out, padded so that 8 lanes meet no bank twice.
constexpr int staged_row_bytes(int slab_rows) { return slab_rows + 16; }

/// A row's sums of all tokens where a cluster shares K, padded so that 8 tokens and 4 pairs of rows meet no bank twice.
constexpr int sent_row_bytes(int columns) { return (columns + 4) * 4; }

/// What becomes of the sums of a weight's rows.
enum class NarrowEnd : uint8_t {
  kPlain,
  kGated,  ///< gates and ups lie in one thread's registers if a block has all of K
};

/// A pure function: of all ways to cut the weight the one whose slowest multiprocessor ends first, by what it takes from
/// memory and from L2. Requires: 1 <= m <= 64, rows a multiple of 64.
NarrowShape narrow_shape(int64_t m, int64_t rows, int64_t k, int64_t multiprocessors, NarrowEnd end);
/// The same for a weight of `heads` heads whose halves pair up at the end: a slab is a head. Nothing if that would leave much
/// of the device idle: then rotation is better a kernel of its own. Requires: head_dim a multiple of 16.
std::optional<NarrowShape> narrow_heads_shape(int64_t m, int64_t heads, int64_t head_dim, int64_t k,
                                              int64_t multiprocessors);

}  // namespace tessera::cuda
