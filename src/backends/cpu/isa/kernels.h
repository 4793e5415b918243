#pragma once

#include "backends/cpu/leaf.h"

namespace tessera::cpu {

/// The vector kernels of one instruction set each. Call only where cpu_features() has the set.
const LeafKernels& avx2_kernels();
const LeafKernels& avx512_kernels();

/// Products of bf16 by vdpbf16ps, and by AMX tiles; the rest of these sets is AVX-512's.
const ProductKernels& avx512_bf16_products();
const ProductKernels& amx_bf16_products();

}  // namespace tessera::cpu
