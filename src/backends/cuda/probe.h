#pragma once

#include "ops/context.h"

namespace tessera::cuda {

/// Random numbers in [-0.5, 0.5) over a whole contiguous tensor, or random bytes where it is u8: probes and benchmarks
/// must not run on zeros, on which a GPU draws less power and runs faster.
void fill_random(Stream& stream, const Tensor& tensor, uint32_t seed);

/// Reads `bytes` (a multiple of 16) once, as fast as the device can; what is read goes nowhere.
void read_once(Stream& stream, const void* data, size_t bytes);

}  // namespace tessera::cuda
