#pragma once

#include <algorithm>

#include "backends/cpu/cpu_stream.h"

namespace tessera::cpu {

/// Keys that one softmax update covers. Blocks are counted from position 0 of a sequence, so that a row's sums are made in
/// the same order whatever the chunk, batch or cache it comes from. A multiple of kPanel.
inline constexpr int64_t kKeyBlock = 256;

/// K and V of one kv head for one block of keys, in the form of packed panels: K is [keys, head_dim] (a panel is 16 keys),
/// V its transpose [head_dim, keys] (a panel is 16 features).
struct KeyValueBlock {
  const void* k_panels[kKeyBlock / kPanel] = {};
  int64_t k_stride = 0;  ///< bytes
  const void* v = nullptr;                         ///< all keys in one piece, or
  const void* v_pieces[kKeyBlock / kPanel] = {};   ///< (v null) kPanel keys each; see FlashRows::takes_pieces
  int64_t v_stride = 0;   ///< bytes from one key (bf16: pair of keys) to the next
  int64_t keys = 0;       ///< multiple of kPanel; what lies past the sequence's end is finite in V
};

/// Attention of up to `max_rows` query rows of one kv head: start(), then block() for the blocks from position 0 on, then
/// finish(). Scores never exist for more than one block: the flash form. One thread's scratch holds everything.
class FlashRows {
 public:
  FlashRows(const LeafKernels& leaf, Element kv_type, int64_t max_rows, int64_t head_dim, float scale,
            Scratch& scratch);

  /// Whether V may come in pieces: for few rows reading it where it lies is cheaper than gathering it. The sums are the same
  /// to the bit: each goes on from the last.
  static bool takes_pieces(const LeafKernels& leaf, Element kv_type, int64_t rows) {
    const ProductKernels& products = leaf.products[kv_type];
    return rows <= std::min(kFewRows, products.a_group) && products.a_depth <= kPanel;
  }

  /// Rows of q as f32, [rows, head_dim], in the buffer that start() reads; the caller fills it.
  float* query_row(int64_t row) { return q_ + row * head_dim_; }
  void start(int64_t rows);
  /// visible()[row]: how many keys of the coming block the row sees; set before block().
  int32_t* visible() { return visible_; }
  void block(const KeyValueBlock& kv);
  void finish_row(int64_t row, void* out, Element type) const;

 private:
  static constexpr int64_t kFewRows = 8;

  void ask_for_values(const KeyValueBlock& kv) const;
  void add_values(const void* packed_p, const void* v, int64_t keys, int64_t v_stride);

  const LeafKernels& leaf_;
  const ProductKernels& products_;
  int64_t head_dim_, padded_dim_;
  int64_t kv_element_;  // bytes
  float scale_;
  int64_t rows_ = 0;
  float *q_, *scores_, *out_, *maximum_, *sum_, *rescale_;
  void *packed_q_, *packed_p_;
  int32_t* visible_;
};

/// Width of V's rows in panels' elements.
inline int64_t padded_head_dim(int64_t head_dim) { return round_up(head_dim, kPanel); }

}  // namespace tessera::cpu
