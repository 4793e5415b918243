#pragma once

#include <memory>
#include <string>

#include "backends/cpu/cpu_stream.h"
#include "ops/weight.h"

namespace tessera::cpu {

/// Where things lie in a packed weight. kEmbedding keeps plain rows; all other uses are panels (leaf.h), the panels of an
/// expert one after the other; kGated alternates a panel of gates and the panel of the same ups.
struct PackedLayout {
  explicit PackedLayout(const LinearSpec& spec);

  int64_t k_padded = 0;      ///< cols, rounded up to 2
  int64_t k_stride = 0;      ///< bytes, see MultiplyArgs
  int64_t panel_bytes = 0;
  int64_t panels = 0;        ///< of one expert; even for kGated
  int64_t expert_bytes = 0;
  size_t bytes = 0;          ///< all experts
};

/// Reads and packs `source` with all threads; only accounts where the allocator counts.
std::unique_ptr<Weight> pack_weight(CpuStream& stream, const LinearSpec& spec, const WeightSource* source,
                                    Allocator& allocator, MemoryLine line, const std::string& name);

/// Row `row` of a table (kEmbedding or kTied) as f32.
void read_table_row(const LeafKernels& leaf, const Weight& table, int64_t row, float* out);

}  // namespace tessera::cpu
