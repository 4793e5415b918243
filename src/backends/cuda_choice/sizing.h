#pragma once

#include "ops/backend.h"

namespace tessera::cuda {

/// Memory of a CUDA device as pure functions: `tessera plan` needs no GPU for them.
class CudaSizing final : public Sizing {
 public:
  explicit CudaSizing(const DeviceLimits& limits) : limits_(limits) {}

  Precision precision(DType compute) const override;
  size_t weight_bytes(const LinearSpec& spec) const override;
  size_t kernel_workspace_bytes(const WorkspaceShape& shape) const override;
  size_t sample_workspace_bytes(int64_t rows, int64_t vocab) const override;
  size_t staging_bytes() const override;
  size_t graph_bytes() const override;
  size_t driver_bytes() const override;

 private:
  DeviceLimits limits_;
};

/// cuBLASLt's workspace: NVIDIA's recommendation for Hopper; less is enough before it.
inline constexpr size_t kLibraryWorkspace = size_t{32} << 20;
/// A product whose epilogue is a separate pass is cut into row pieces whose raw result takes at most this: big enough
/// to fill the device, small enough to stay in a large L2.
inline constexpr size_t kProductScratch = size_t{96} << 20;
/// Split decode attention: partial results of at most this many splits a sequence.
inline constexpr int64_t kMaxSplits = 32;
/// Captured decode steps that are kept; the least recently used one makes room for a new one.
inline constexpr size_t kMaxGraphs = 64;
/// Loading reads through two pinned pieces of this size.
inline constexpr size_t kStagingPiece = size_t{64} << 20;

/// Bytes of split attention's partial results: (head_dim + 2) f32 a split, head and sequence.
size_t split_attention_bytes(int64_t sequences, int64_t heads, int64_t head_dim);

/// A block's part of a product's tile that is split along K: 128 x 256 sums in f32.
inline constexpr size_t kSplitBytes = size_t{128} * 256 * sizeof(float);

/// The three pieces that reserve_workspace allocates: cuBLASLt's workspace, raw products whose epilogue is a separate
/// pass or sums of split tiles, and what a single operator needs for itself (split attention, converted or padded inputs, expert choices).
struct WorkspaceParts {
  size_t library = 0, product = 0, op = 0;
};
WorkspaceParts workspace_parts(const WorkspaceShape& shape, const DeviceLimits& limits);

}  // namespace tessera::cuda
