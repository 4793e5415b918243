#include <algorithm>
#include <cstring>
#include <vector>

#include "backends/cpu/flash.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/kv_block.h"
#include "ops/attention.h"

namespace tessera::cpu {
namespace {

// Rows of one work item: enough that a key block, once gathered, is used many times; small enough for L2.
constexpr int64_t kRows = 72;

struct Item {
  int64_t sequence;
  int64_t token_begin, tokens;  ///< rows of the batch
  int64_t first_position;       ///< of token_begin
};

class PagedAttention {
 public:
  PagedAttention(CpuStream& stream, const PagedAttentionArgs& args)
      : stream_(stream), args_(args), order_(args.kv.layout), group_(args.heads / args.kv_heads) {
    const int64_t tokens_per_item = std::max<int64_t>(1, kRows / group_);
    const auto* offsets = args.query_offsets.ptr<const int32_t>();
    const auto* lengths = args.kv_lengths.ptr<const int32_t>();
    for (int64_t s = 0; s < args.shape.sequences; ++s) {
      const int64_t count = offsets[s + 1] - offsets[s];
      for (int64_t t = 0; t < count; t += tokens_per_item)
        items_.push_back({s, offsets[s] + t, std::min(tokens_per_item, count - t), lengths[s] - count + t});
    }
  }

  void run() {
    // Heads vary fastest; the last items have the longest histories, so they are begun first.
    const auto count = static_cast<int64_t>(items_.size()) * args_.kv_heads;
    stream_.pool.parallel_for(count, [&](int64_t index, int thread) {
      const int64_t i = count - 1 - index;
      run_item(items_[static_cast<size_t>(i / args_.kv_heads)], i % args_.kv_heads, stream_.scratch_of(thread));
    });
  }

 private:
  void run_item(const Item& item, int64_t kv_head, Scratch& scratch) {
    scratch.reset();
    const int64_t d = args_.head_dim;
    const int64_t rows = item.tokens * group_;
    FlashRows flash(stream_.leaf, order_.type, rows, d, args_.scale, scratch);
    const int64_t dim = padded_head_dim(d);
    char* k_block = scratch.take<char>(kKeyBlock * d * order_.element);
    char* v_block = scratch.take<char>(kKeyBlock * dim * order_.element);
    for (int64_t t = 0; t < item.tokens; ++t)
      stream_.leaf.load_row(at(args_.q, item.token_begin + t, kv_head), element_of(args_.q.dtype), group_ * d,
                            flash.query_row(t * group_));
    flash.start(rows);
    const int64_t seen = item.first_position + item.tokens;  // keys of the item's last token
    for (int64_t begin = 0; begin < seen; begin += kKeyBlock) {
      const int64_t keys = std::min(kKeyBlock, seen - begin);
      for (int64_t t = 0; t < item.tokens; ++t)
        std::fill_n(flash.visible() + t * group_, group_,
                    static_cast<int32_t>(std::clamp<int64_t>(item.first_position + t + 1 - begin, 0, keys)));
      flash.block(block_of(item.sequence, kv_head, begin, keys, rows, k_block, v_block));
    }
    for (int64_t t = 0; t < item.tokens; ++t)
      for (int64_t j = 0; j < group_; ++j)
        flash.finish_row(t * group_ + j, at(args_.out, item.token_begin + t, kv_head) + j * d * out_element(),
                         element_of(args_.out.dtype));
  }

  int64_t out_element() const { return static_cast<int64_t>(size_of(args_.out.dtype)); }

  /// The first of a kv head's query heads in a row of the batch.
  char* at(const Tensor& tensor, int64_t row, int64_t kv_head) const {
    return static_cast<char*>(tensor.data) + (row * tensor.row_stride + kv_head * group_ * args_.head_dim) *
                                                 static_cast<int64_t>(size_of(tensor.dtype));
  }

  /// Keys [begin, begin + keys) of a sequence, from position 0 in steps of kKeyBlock. Where panels lie whole in cache blocks
  /// they are read there; else they are copied to `k_out` and `v_out`.
  KeyValueBlock block_of(int64_t sequence, int64_t kv_head, int64_t begin, int64_t keys, int64_t rows, char* k_out,
                         char* v_out) const {
    const int64_t dim = padded_head_dim(args_.head_dim);
    KeyValueBlock kv;
    kv.keys = round_up(keys, kPanel);
    kv.v_stride = dim * order_.element * order_.pair;
    const bool whole = order_.block_size % kPanel == 0;
    if (whole)
      point_at_keys(sequence, kv_head, begin, kv);
    else
      gather_keys(sequence, kv_head, begin, keys, k_out, kv);
    if (whole && dim == args_.head_dim && FlashRows::takes_pieces(stream_.leaf, order_.type, rows))
      point_at_values(sequence, kv_head, begin, keys, v_out, kv);
    else
      gather_values(sequence, kv_head, begin, keys, v_out, kv);
    return kv;
  }

  // What the cache holds past the sequence's end is looked at by nobody: softmax knows how many keys a row sees.
  void point_at_keys(int64_t sequence, int64_t kv_head, int64_t begin, KeyValueBlock& kv) const {
    const auto* table = args_.block_tables.row<const int32_t>(sequence);
    kv.k_stride = order_.k_stride();
    for (int64_t p = 0; p < kv.keys / kPanel; ++p) {
      const int64_t token = begin + p * kPanel;
      kv.k_panels[p] = order_.k(args_.kv, table[token / order_.block_size], kv_head) +
                       token % order_.block_size * order_.element * order_.pair;
    }
  }

  // A piece that the sequence does not fill is copied: what lies behind its end may be NaN, and zero times that is no zero.
  void point_at_values(int64_t sequence, int64_t kv_head, int64_t begin, int64_t keys, char* v_out, KeyValueBlock& kv) const {
    const auto* table = args_.block_tables.row<const int32_t>(sequence);
    for (int64_t p = 0; p < kv.keys / kPanel; ++p) {
      const int64_t token = begin + p * kPanel, in_block = token % order_.block_size;
      const char* v = order_.v(args_.kv, table[token / order_.block_size], kv_head);
      const int64_t there = keys - p * kPanel;
      kv.v_pieces[p] = v + in_block / order_.pair * order_.v_stride();
      if (there >= kPanel) continue;
      std::memset(v_out, 0, static_cast<size_t>(kPanel * order_.head_dim * order_.element));
      copy_values(v, in_block, there, v_out, 0, order_.head_dim);
      kv.v_pieces[p] = v_out;
    }
  }

  /// Calls body(key, run, block, token in block) for runs of keys that stay inside a cache block and inside a panel.
  template <class Body>
  void each_run(int64_t sequence, int64_t begin, int64_t keys, const Body& body) const {
    const auto* table = args_.block_tables.row<const int32_t>(sequence);
    for (int64_t key = 0; key < keys;) {
      const int64_t token = begin + key, in_block = token % order_.block_size;
      const int64_t run = std::min({keys - key, order_.block_size - in_block, kPanel - key % kPanel});
      body(key, run, table[token / order_.block_size], in_block);
      key += run;
    }
  }

  void gather_keys(int64_t sequence, int64_t kv_head, int64_t begin, int64_t keys, char* k_out, KeyValueBlock& kv) const {
    const int64_t d = args_.head_dim, pair = order_.pair, element = order_.element;
    const int64_t panel_bytes = kPanel * d * element;
    if (kv.keys != keys) std::memset(k_out, 0, static_cast<size_t>(kv.keys * d * element));
    each_run(sequence, begin, keys, [&](int64_t key, int64_t run, int64_t block, int64_t in_block) {
      const char* k = order_.k(args_.kv, block, kv_head) + in_block * element * pair;
      char* k_to = k_out + key / kPanel * panel_bytes + key % kPanel * element * pair;
      for (int64_t i = 0; i < d / pair; ++i)
        std::memcpy(k_to + i * kPanel * element * pair, k + i * order_.k_stride(),
                    static_cast<size_t>(run * element * pair));
    });
    kv.k_stride = kPanel * element * pair;
    for (int64_t p = 0; p < kv.keys / kPanel; ++p) kv.k_panels[p] = k_out + p * panel_bytes;
  }

  /// V is zero from `keys` on to the next multiple of kPanel.
  void gather_values(int64_t sequence, int64_t kv_head, int64_t begin, int64_t keys, char* v_out, KeyValueBlock& kv) const {
    const int64_t dim = padded_head_dim(args_.head_dim);
    if (dim != args_.head_dim || kv.keys != keys) std::memset(v_out, 0, static_cast<size_t>(kv.keys * dim * order_.element));
    each_run(sequence, begin, keys, [&](int64_t key, int64_t run, int64_t block, int64_t in_block) {
      copy_values(order_.v(args_.kv, block, kv_head), in_block, run, v_out, key, dim);
    });
    kv.v = v_out;
  }

  void copy_values(const char* v, int64_t in_block, int64_t run, char* v_out, int64_t key, int64_t dim) const {
    const int64_t d = args_.head_dim, pair = order_.pair, element = order_.element;
    const int64_t whole = run / pair;  // runs begin at even keys
    for (int64_t i = 0; i < whole; ++i)
      std::memcpy(v_out + (key / pair + i) * dim * element * pair, v + (in_block / pair + i) * order_.v_stride(),
                  static_cast<size_t>(d * element * pair));
    if (whole * pair == run) return;
    // The sequence ends on the first of a pair: its partner in the cache may hold anything, also NaN.
    const auto* from = reinterpret_cast<const uint16_t*>(v + (in_block / 2 + whole) * order_.v_stride());
    auto* to = reinterpret_cast<uint16_t*>(v_out + (key / 2 + whole) * dim * element * 2);
    for (int64_t i = 0; i < d; ++i) to[2 * i] = from[2 * i];
  }

  CpuStream& stream_;
  const PagedAttentionArgs& args_;
  const KvBlockOrder order_;
  const int64_t group_;
  std::vector<Item> items_;
};

}  // namespace

void paged_attention(Stream& s, const PagedAttentionArgs& args) {
  PagedAttention(cpu_stream(s), args).run();
}

}  // namespace tessera::cpu
