#include "backends/cpu/linear.h"

#include <algorithm>

#include "backends/cpu/kernels.h"
#include "backends/cpu/packed_weight.h"

namespace tessera::cpu {
namespace {

// A block of rows of x, packed, is reused for all panels: kRowBlock rows of kDepthBlock columns are 192 KiB of bf16 and
// stay in L2 beside the panels that stream by. At kRowBlock rows a panel is read from memory at 64 bytes in about as many
// cycles, far below what memory gives.
constexpr int64_t kRowBlock = 96;
constexpr int64_t kDepthBlock = 1024;
// Columns of one work item, in panels: wide enough that packing x again for each item costs little, narrow enough to
// share a small matrix between threads. Even, so that gates and their ups meet.
constexpr int64_t kWidePanels = 32;
constexpr int64_t kNarrowPanels = 4;
// Items a thread from which on it matters little that the last round is not full.
constexpr int64_t kManyItems = 8;
// A product with few rows streams weights: items as wide as leave each thread this many, so that a slow thread is helped.
constexpr int64_t kStreamedItems = 12;

struct Item {
  int64_t row_begin, rows;
  int64_t panel_begin, panels;
};

class Product {
 public:
  Product(CpuStream& stream, const ProductTask& task)
      : stream_(stream),
        task_(task),
        spec_(task.weight->spec()),
        layout_(spec_),
        kernels_(stream.leaf.products[element_of(spec_.dtype)]),
        memory_(static_cast<const char*>(task.weight->data()) + task.expert * layout_.expert_bytes) {
    const int64_t m = task.x.rows();
    row_items_ = ceil_div(m, kRowBlock);
    // Few rows: the product is a stream of weights.
    item_panels_ = m < kRowBlock / 4 ? streamed_width(stream.pool.threads()) : even_width(stream.pool.threads());
    column_items_ = ceil_div(layout_.panels, item_panels_);
  }

  int64_t items() const { return row_items_ * column_items_; }

  void run(int64_t index, int thread) {
    Scratch& scratch = stream_.scratch_of(thread);
    scratch.reset();
    Item item;
    item.row_begin = index / column_items_ * kRowBlock;
    item.rows = std::min(kRowBlock, task_.x.rows() - item.row_begin);
    item.panel_begin = index % column_items_ * item_panels_;
    item.panels = std::min(item_panels_, layout_.panels - item.panel_begin);
    const int64_t ldc = item.panels * kPanel;
    float* c = scratch.take<float>(item.rows * ldc);
    multiply(item, c, ldc, scratch);
    finish(item, c, ldc);
  }

 private:
  int64_t streamed_width(int64_t threads) const {
    const int64_t width = layout_.panels / (threads * kStreamedItems) / kNarrowPanels * kNarrowPanels;
    return std::clamp(width, kNarrowPanels, kWidePanels);
  }

  /// The widest items that keep all threads busy to the end.
  int64_t even_width(int64_t threads) const {
    for (int64_t parts = ceil_div(layout_.panels, kWidePanels);; ++parts) {
      const int64_t width = ceil_div(ceil_div(layout_.panels, parts), 2) * 2;
      const int64_t items = row_items_ * ceil_div(layout_.panels, width);
      if (width <= kNarrowPanels || items % threads == 0 || items >= kManyItems * threads)
        return std::max(width, kNarrowPanels);
    }
  }

  void multiply(const Item& item, float* c, int64_t ldc, Scratch& scratch) {
    const Tensor x = task_.x.slice(item.row_begin, item.rows);
    const Element type = element_of(x.dtype);
    const auto x_element = static_cast<int64_t>(size_of(x.dtype));
    const bool direct = kernels_.row_is_packed && item.rows == 1 && x.dtype == spec_.dtype && layout_.k_padded == spec_.cols;
    void* packed = direct ? nullptr
                          : scratch.take<char>(packed_bytes(kernels_, item.rows, std::min(kDepthBlock, layout_.k_padded)));
    const void* panels[kWidePanels];
    for (int64_t k = 0; k < layout_.k_padded; k += kDepthBlock) {
      const int64_t depth = std::min(kDepthBlock, layout_.k_padded - k);
      const char* rows = static_cast<const char*>(x.data) + k * x_element;
      if (!direct)
        kernels_.pack_a(rows, type, x.row_stride, item.rows, std::min(depth, spec_.cols - k), depth, packed);
      const int64_t k_offset = (spec_.dtype == DType::kBF16 ? k / 2 : k) * layout_.k_stride;
      for (int64_t p = 0; p < item.panels; ++p)
        panels[p] = memory_ + (item.panel_begin + p) * layout_.panel_bytes + k_offset;
      kernels_.multiply({.a = direct ? rows : packed,
                         .rows = item.rows,
                         .k = depth,
                         .panels = panels,
                         .panel_count = static_cast<int>(item.panels),
                         .k_stride = layout_.k_stride,
                         .c = c,
                         .ldc = ldc,
                         .accumulate = k > 0});
    }
  }

  void finish(const Item& item, const float* c, int64_t ldc) {
    const bool gated = task_.activation == Activation::kSiluMul;
    for (int64_t r = 0; r < item.rows; ++r) {
      const float* row = c + r * ldc;
      if (!gated) {
        const int64_t begin = item.panel_begin * kPanel;
        finish_columns(item.row_begin + r, row, nullptr, begin, std::min(item.panels * kPanel, spec_.rows - begin));
        continue;
      }
      for (int64_t p = 0; p < item.panels; p += 2) {
        const int64_t begin = (item.panel_begin + p) / 2 * kPanel;
        finish_columns(item.row_begin + r, row + p * kPanel, row + (p + 1) * kPanel, begin,
                       std::min<int64_t>(kPanel, spec_.rows / 2 - begin));
      }
    }
  }

  void finish_columns(int64_t row, const float* c, const float* up, int64_t begin, int64_t count) {
    const float* bias = task_.bias.ptr<const float>();
    EpilogueRowArgs args = epilogue_to(task_.residual, task_.out, row, begin, count);
    args.c = c;
    args.up = up;
    args.activation = static_cast<RowActivation>(task_.activation);
    args.bias = bias ? bias + begin : nullptr;
    args.bias_up = bias && up ? bias + spec_.rows / 2 + begin : nullptr;
    args.scale = task_.scale ? task_.scale.ptr<const float>() + begin : nullptr;
    stream_.leaf.epilogue_row(args);
  }

  CpuStream& stream_;
  const ProductTask& task_;
  const LinearSpec& spec_;
  const PackedLayout layout_;
  const ProductKernels& kernels_;
  const char* memory_;
  int64_t item_panels_ = 0;
  int64_t column_items_ = 0;
  int64_t row_items_ = 0;
};

static_assert(static_cast<int>(Activation::kGelu) == kRowGelu && static_cast<int>(Activation::kSiluMul) == kRowSiluMul);

}  // namespace

EpilogueRowArgs epilogue_to(const Tensor& residual, const Tensor& out, int64_t row, int64_t begin, int64_t count) {
  const auto at = [&](const Tensor& t) {
    return static_cast<char*>(t.data) + (row * t.row_stride + begin) * static_cast<int64_t>(size_of(t.dtype));
  };
  return {.n = count,
          .residual = residual ? at(residual) : nullptr,
          .residual_type = element_of(residual.dtype),
          .out = at(out),
          .out_type = element_of(out.dtype)};
}

void run_product(CpuStream& stream, const ProductTask& task, int thread) {
  Product product(stream, task);
  if (thread < 0) {
    stream.pool.parallel_for(product.items(), [&](int64_t item, int t) { product.run(item, t); });
  } else {
    for (int64_t item = 0; item < product.items(); ++item) product.run(item, thread);
  }
}

void linear(Stream& s, const LinearArgs& args) {
  CpuStream& stream = cpu_stream(s);
  run_product(stream, {.x = args.x,
                       .weight = args.weight,
                       .activation = args.activation,
                       .bias = args.bias,
                       .scale = args.scale,
                       .residual = args.residual,
                       .out = args.out});
  next_norm(s, args.next_norm, args.out);
}

void epilogue(Stream& s, const EpilogueArgs& args) {
  CpuStream& stream = cpu_stream(s);
  const int64_t n = args.x.row_elements();
  parallel_rows(stream, args.x.rows(), std::max<int64_t>(1, 16384 / n), [&](int64_t begin, int64_t end, int thread) {
    Scratch& scratch = stream.scratch_of(thread);
    scratch.reset();
    float* row = scratch.take<float>(n);
    for (int64_t r = begin; r < end; ++r) {
      stream.leaf.load_row(args.x.slice(r, 1).data, element_of(args.x.dtype), n, row);
      EpilogueRowArgs to = epilogue_to(args.residual, args.out, r, 0, n);
      to.c = row;
      to.bias = args.bias.ptr<const float>();
      to.scale = args.scale.ptr<const float>();
      stream.leaf.epilogue_row(to);
    }
  });
  next_norm(s, args.next_norm, args.out);
}

}  // namespace tessera::cpu
