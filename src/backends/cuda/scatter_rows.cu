#include "backends/cuda/fast.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/operators.h"
#include "backends/cuda/plain/plain.h"
#include "backends/cuda/rows.h"
#include "ops/embedding.h"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPieces = 4;  // of 16 bytes, of a thread at a time

struct ScatterParams {
  const uint4* from;
  uint4* to;
  const int* indices;
  int64_t from_stride, to_stride;
  int pieces;  ///< of a row
};

/// A row a block. What it reads does not depend on where it goes, so both are asked for at once.
__global__ __launch_bounds__(kThreads) void scatter_kernel(ScatterParams p) {
  let_next_start();
  wait_for_previous();
  const int index = p.indices[blockIdx.x];
  const uint4* from = p.from + blockIdx.x * p.from_stride;
  for (int first = threadIdx.x; first < p.pieces; first += kThreads * kPieces) {
    uint4 v[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      if (first + i * kThreads < p.pieces) v[i] = from[first + i * kThreads];
    if (index < 0) return;
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      if (first + i * kThreads < p.pieces) p.to[index * p.to_stride + first + i * kThreads] = v[i];
  }
}

}  // namespace

void scatter_rows(Stream& stream, const ScatterRowsArgs& args) {
  const int64_t each = static_cast<int64_t>(sizeof(uint4) / size_of(args.x.dtype));
  if (args.x.dtype != args.out.dtype || args.x.row_elements() % each != 0 || !vectors16(plain::elements(args.x)) || !vectors16(plain::elements(args.out)))
    return plain::scatter_rows(stream, args);
  launch_fast(stream, "scatter_rows", Grid{static_cast<unsigned>(args.x.rows())}, kThreads, 0, scatter_kernel,
              ScatterParams{.from = args.x.ptr<uint4>(),
                            .to = args.out.ptr<uint4>(),
                            .indices = args.indices.ptr<int>(),
                            .from_stride = args.x.row_stride / each,
                            .to_stride = args.out.row_stride / each,
                            .pieces = static_cast<int>(args.x.row_elements() / each)});
}

}  // namespace tessera::cuda
