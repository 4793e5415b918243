#include "backends/cpu/packed_weight.h"

#include <cstring>

namespace tessera::cpu {

PackedLayout::PackedLayout(const LinearSpec& spec) {
  const auto element = static_cast<int64_t>(size_of(spec.dtype));
  if (spec.use == WeightUse::kEmbedding) {
    k_padded = spec.cols;
    expert_bytes = spec.rows * spec.cols * element;
  } else {
    const bool gated = spec.use == WeightUse::kGated;
    k_padded = round_up(spec.cols, 2);
    k_stride = kPanel * element * (spec.dtype == DType::kBF16 ? 2 : 1);
    panel_bytes = kPanel * k_padded * element;
    panels = gated ? 2 * ceil_div(spec.rows / 2, kPanel) : ceil_div(spec.rows, kPanel);
    expert_bytes = panels * panel_bytes;
  }
  bytes = static_cast<size_t>(expert_bytes * spec.experts);
}

namespace {

/// `count` rows of k 16-bit elements, one after the other, into a zeroed panel; `pairs` is the order of bf16.
void fill_panel(const uint16_t* rows, int64_t count, int64_t k, bool pairs, uint16_t* panel) {
  const int64_t pair = pairs ? 2 : 1;
  for (int64_t i = 0; i < k; ++i)
    for (int64_t r = 0; r < count; ++r) panel[(i / pair * kPanel + r) * pair + i % pair] = rows[r * k + i];
}

struct PanelRows {
  int64_t begin = 0;
  int64_t count = 0;
};

/// The matrix rows of a panel; kGated alternates.
PanelRows rows_of_panel(const LinearSpec& spec, int64_t panel) {
  if (spec.use != WeightUse::kGated) {
    const int64_t begin = panel * kPanel;
    return {begin, std::min<int64_t>(kPanel, spec.rows - begin)};
  }
  const int64_t half = spec.rows / 2;
  const int64_t begin = panel / 2 * kPanel;
  return {begin + (panel % 2) * half, std::min<int64_t>(kPanel, half - begin)};
}

void pack_panel(const LeafKernels& leaf, const LinearSpec& spec, const PackedLayout& layout, const WeightSource& source,
                int64_t expert, int64_t panel, char* out) {
  const PanelRows rows = rows_of_panel(spec, panel);
  thread_local std::vector<char> staged;  // kept: a fresh one for every panel costs a page fault for each 4 KB
  const auto row_bytes = spec.cols * static_cast<int64_t>(size_of(spec.dtype));
  staged.resize(static_cast<size_t>(rows.count * row_bytes));
  source.read(expert, rows.begin, rows.count, spec.dtype, staged.data());
  if (spec.dtype != DType::kF16 && row_bytes % 4 == 0)
    return leaf.transpose_words(staged.data(), row_bytes, rows.count, row_bytes / 4, out);
  std::memset(out, 0, static_cast<size_t>(layout.panel_bytes));
  fill_panel(reinterpret_cast<const uint16_t*>(staged.data()), rows.count, spec.cols, spec.dtype == DType::kBF16,
             reinterpret_cast<uint16_t*>(out));
}

}  // namespace

std::unique_ptr<Weight> pack_weight(CpuStream& stream, const LinearSpec& spec, const WeightSource* source,
                                    Allocator& allocator, MemoryLine line, const std::string& name) {
  TESSERA_CHECK(spec.rows > 0 && spec.cols > 0 && spec.experts > 0 &&
                    (spec.use != WeightUse::kGated || spec.rows % 2 == 0),
                "[make_weight] " + name + " has no valid shape");
  const PackedLayout layout(spec);
  auto weight = std::make_unique<Weight>(spec, allocator.allocate(layout.bytes, line, name));
  char* memory = static_cast<char*>(weight->data());
  if (!memory) return weight;
  TESSERA_CHECK(source != nullptr, "[make_weight] " + name + " has no source");
  if (spec.use == WeightUse::kEmbedding) {
    constexpr int64_t kRows = 64;
    const int64_t row_bytes = layout.expert_bytes / spec.rows;
    parallel_rows(stream, spec.rows, kRows, [&](int64_t begin, int64_t end, int) {
      source->read(0, begin, end - begin, spec.dtype, memory + begin * row_bytes);
    });
    return weight;
  }
  stream.pool.parallel_for(layout.panels * spec.experts, [&](int64_t item, int) {
    pack_panel(stream.leaf, spec, layout, *source, item / layout.panels, item % layout.panels,
               memory + item * layout.panel_bytes);
  });
  return weight;
}

void read_table_row(const LeafKernels& leaf, const Weight& table, int64_t row, float* out) {
  const LinearSpec& spec = table.spec();
  const PackedLayout layout(spec);
  const char* data = static_cast<const char*>(table.data());
  if (spec.use == WeightUse::kEmbedding) {
    const int64_t row_bytes = layout.expert_bytes / spec.rows;
    return leaf.load_row(data + row * row_bytes, element_of(spec.dtype), spec.cols, out);
  }
  const char* panel = data + row / kPanel * layout.panel_bytes;
  const int64_t lane = row % kPanel;
  for (int64_t i = 0; i < spec.cols; ++i) {
    switch (spec.dtype) {
      case DType::kBF16:
        out[i] = to_float(reinterpret_cast<const bf16*>(panel + i / 2 * layout.k_stride)[2 * lane + i % 2]);
        break;
      case DType::kF16: out[i] = to_float(reinterpret_cast<const f16*>(panel + i * layout.k_stride)[lane]); break;
      default: out[i] = reinterpret_cast<const float*>(panel + i * layout.k_stride)[lane]; break;
    }
  }
}

}  // namespace tessera::cpu
