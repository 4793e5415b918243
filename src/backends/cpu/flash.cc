#include "backends/cpu/flash.h"

#include <algorithm>
#include <limits>

namespace tessera::cpu {

FlashRows::FlashRows(const LeafKernels& leaf, Element kv_type, int64_t max_rows, int64_t head_dim, float scale,
                     Scratch& scratch)
    : leaf_(leaf),
      products_(leaf.products[kv_type]),
      head_dim_(head_dim),
      padded_dim_(padded_head_dim(head_dim)),
      kv_element_(kv_type == kElementF32 ? 4 : 2),
      scale_(scale) {
  q_ = scratch.take<float>(max_rows * head_dim);
  scores_ = scratch.take<float>(max_rows * kKeyBlock);
  out_ = scratch.take<float>(max_rows * padded_dim_);
  maximum_ = scratch.take<float>(max_rows);
  sum_ = scratch.take<float>(max_rows);
  rescale_ = scratch.take<float>(max_rows);
  visible_ = scratch.take<int32_t>(max_rows);
  packed_q_ = scratch.take<char>(packed_bytes(products_, max_rows, head_dim));
  packed_p_ = scratch.take<char>(packed_bytes(products_, max_rows, kKeyBlock));
}

void FlashRows::start(int64_t rows) {
  rows_ = rows;
  products_.pack_a(q_, kElementF32, head_dim_, rows, head_dim_, head_dim_, packed_q_);
  std::fill(out_, out_ + rows * padded_dim_, 0.0f);
  std::fill(sum_, sum_ + rows, 0.0f);
  std::fill(maximum_, maximum_ + rows, -std::numeric_limits<float>::infinity());
}

// Few rows wait for memory: the values come nearer while the scores are made.
void FlashRows::ask_for_values(const KeyValueBlock& kv) const {
  constexpr int64_t kLine = 64;
  const int64_t piece = kPanel * padded_dim_ * kv_element_;
  for (int64_t i = 0; i < kv.keys / kPanel; ++i)
    for (int64_t at = 0; at < piece; at += kLine) __builtin_prefetch(static_cast<const char*>(kv.v_pieces[i]) + at, 0, 2);
}

void FlashRows::block(const KeyValueBlock& kv) {
  if (!kv.v) ask_for_values(kv);
  products_.multiply({.a = packed_q_,
                      .rows = rows_,
                      .k = head_dim_,
                      .panels = kv.k_panels,
                      .panel_count = static_cast<int>(kv.keys / kPanel),
                      .k_stride = kv.k_stride,
                      .c = scores_,
                      .ldc = kKeyBlock});
  leaf_.softmax({.scores = scores_,
                 .lds = kKeyBlock,
                 .rows = rows_,
                 .keys = kv.keys,
                 .visible = visible_,
                 .scale = scale_,
                 .maximum = maximum_,
                 .sum = sum_,
                 .rescale = rescale_});
  for (int64_t r = 0; r < rows_; ++r)
    if (rescale_[r] != 1.0f) leaf_.scale_row(out_ + r * padded_dim_, padded_dim_, rescale_[r]);
  products_.pack_a(scores_, kElementF32, kKeyBlock, rows_, kv.keys, kv.keys, packed_p_);
  if (kv.v) return add_values(packed_p_, kv.v, kv.keys, kv.v_stride);
  const int64_t piece = packed_bytes(products_, rows_, kPanel);
  for (int64_t i = 0; i < kv.keys / kPanel; ++i)
    add_values(static_cast<const char*>(packed_p_) + i * piece, kv.v_pieces[i], kPanel, kv.v_stride);
}

// out += p v for `keys` keys, p [rows, keys] packed.
void FlashRows::add_values(const void* packed_p, const void* v, int64_t keys, int64_t v_stride) {
  constexpr int64_t kMaxPanels = 32;  // features at a time: head_dim is 256 at most in the released models
  const void* panels[kMaxPanels];
  const int64_t step = kPanel * (v_stride / padded_dim_);
  for (int64_t first = 0; first < padded_dim_ / kPanel; first += kMaxPanels) {
    const int64_t count = std::min(kMaxPanels, padded_dim_ / kPanel - first);
    for (int64_t i = 0; i < count; ++i) panels[i] = static_cast<const char*>(v) + (first + i) * step;
    products_.multiply({.a = packed_p,
                        .rows = rows_,
                        .k = keys,
                        .panels = panels,
                        .panel_count = static_cast<int>(count),
                        .k_stride = v_stride,
                        .c = out_ + first * kPanel,
                        .ldc = padded_dim_,
                        .accumulate = true});
  }
}

void FlashRows::finish_row(int64_t row, void* out, Element type) const {
  const float sum = sum_[row];
  leaf_.store_row(out_ + row * padded_dim_, head_dim_, sum > 0 ? 1.0f / sum : 0.0f, out, type);
}

}  // namespace tessera::cpu
