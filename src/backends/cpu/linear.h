#pragma once

#include "backends/cpu/cpu_stream.h"
#include "ops/linear.h"

namespace tessera::cpu {

/// One product with one matrix (an expert of a stack, or the only one) and its elementwise epilogue.
struct ProductTask {
  Tensor x;  ///< [m, k]
  const Weight* weight = nullptr;
  int64_t expert = 0;
  Activation activation = Activation::kNone;
  Tensor bias, scale, residual;
  Tensor out;  ///< [m, n]
};

/// Where columns [begin, begin + count) of a row go: that part of `out`, by way of `residual` where there is one. The sums
/// and what is done to them are for the caller to fill in.
EpilogueRowArgs epilogue_to(const Tensor& residual, const Tensor& out, int64_t row, int64_t begin, int64_t count);

/// Runs the task with all threads, or (thread >= 0) inside a parallel loop, on that thread alone.
void run_product(CpuStream& stream, const ProductTask& task, int thread = -1);

}  // namespace tessera::cpu
