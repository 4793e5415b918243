#pragma once

#include <string>
#include <vector>

#include "backends/cpu/cpu_info.h"
#include "backends/cpu/leaf.h"
#include "core/dtype.h"
#include "core/result.h"
#include "ops/backend.h"

namespace tessera::cpu {

/// The kernels that a backend runs, and why.
struct KernelSet {
  LeafKernels leaf;
  /// Which set serves the products of each element type, and the elementwise rest, with reasons.
  KernelChoice products[3];
  KernelChoice rest;
};

/// Chooses by what the processor has and, between candidates whose order differs from one processor to another, by a
/// probe of a few milliseconds. `isa` is BackendOptions::isa; one that is not there is an error that says why. The
/// features are an argument, so that their absence is a test.
Result<KernelSet> choose_kernels(const std::string& isa, const CpuFeatures& features);

/// The products of every set that this processor has, for a type: the peak is the best of theirs.
std::vector<ProductKernels> available_products(Element type, const CpuFeatures& features);

/// The words that --isa takes.
const std::vector<std::string>& isa_names();

}  // namespace tessera::cpu
