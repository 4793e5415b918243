#include "backends/cuda_choice/sizing.h"

#include <algorithm>

#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/weight_layout.h"
#include "ops/cuda_module.h"

namespace tessera::cuda {

Precision CudaSizing::precision(DType compute) const {
  Precision precision{.weights = compute, .activation = compute, .residual = DType::kF32, .kv = compute};
  // bf16 has the range of f32, so a tower's stream may be kept in it, as the reference does.
  if (compute == DType::kBF16 && choose_kernels({.limits = limits_, .weights = compute}).linear_fused == LinearKernel::kWgmma) {
    precision.vision_residual = compute;
    precision.folded_norms = true;
  }
  return precision;
}

size_t CudaSizing::weight_bytes(const LinearSpec& spec) const { return packed_shape(spec).bytes; }

size_t split_attention_bytes(int64_t sequences, int64_t heads, int64_t head_dim) {
  return static_cast<size_t>(sequences * heads * kMaxSplits * (head_dim + 2)) * sizeof(float);
}

WorkspaceParts workspace_parts(const WorkspaceShape& shape, const DeviceLimits& limits) {
  constexpr int64_t kPatchColumns = 592;   // 3 * 14 * 14, padded to 16 bytes
  constexpr int64_t kExpertsPerToken = 16; // choices of a mixture: an id and a weight each
  const int64_t rows = std::max(shape.max_tokens, shape.vision_tokens);
  WorkspaceParts parts;
  parts.library = kLibraryWorkspace;
  parts.product = std::min(kProductScratch, static_cast<size_t>(rows * shape.max_features) * sizeof(float));
  if (limits.wgmma) parts.product = std::max(parts.product, static_cast<size_t>(limits.multiprocessors) * kSplitBytes);
  parts.op = std::max({split_attention_bytes(shape.max_sequences, shape.heads, shape.head_dim),
                       static_cast<size_t>(shape.vision_tokens * kPatchColumns) * sizeof(float),
                       static_cast<size_t>(shape.max_tokens * kExpertsPerToken) * 8});
  return parts;
}

size_t CudaSizing::kernel_workspace_bytes(const WorkspaceShape& shape) const {
  const WorkspaceParts parts = workspace_parts(shape, limits_);
  auto rounded = [](size_t bytes) { return (bytes + Allocator::kAlignment - 1) / Allocator::kAlignment * Allocator::kAlignment; };
  return rounded(parts.library) + rounded(parts.product) + rounded(parts.op);
}

// The unedited logits of edited tokens: a row has at most one edit a token.
size_t CudaSizing::sample_workspace_bytes(int64_t rows, int64_t vocab) const {
  return static_cast<size_t>(rows * vocab) * sizeof(float);
}

// The loader's two pinned pieces are the host's memory.
size_t CudaSizing::staging_bytes() const { return 0; }

// Captured decode steps and vision passes, at most kMaxGraphs of them, about 1 MiB each.
size_t CudaSizing::graph_bytes() const { return kMaxGraphs << 20; }

// Context (527 MiB on an H100), the module's and the library's code. Measured on a whole 8B engine after a load: 648 MiB
// were in use beside what was allocated, graphs included.
size_t CudaSizing::driver_bytes() const { return size_t{590} << 20; }

}  // namespace tessera::cuda

namespace tessera {

Result<std::unique_ptr<Sizing>> open_cuda_sizing(const DeviceLimits& limits) {
  return std::unique_ptr<Sizing>(std::make_unique<cuda::CudaSizing>(limits));
}

}  // namespace tessera
