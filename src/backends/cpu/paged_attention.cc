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
      flash.block(gather(item.sequence, kv_head, begin, keys, k_block, v_block));
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

  /// Copies keys [begin, begin + keys) of a sequence into panels; V is zero from `keys` on to the next multiple of 16.
  KeyValueBlock gather(int64_t sequence, int64_t kv_head, int64_t begin, int64_t keys, char* k_out, char* v_out) const {
    const int64_t d = args_.head_dim, pair = order_.pair, element = order_.element;
    const int64_t padded_keys = round_up(keys, kPanel), dim = padded_head_dim(d);
    const auto* table = args_.block_tables.row<const int32_t>(sequence);
    const int64_t panel_bytes = kPanel * d * element;
    if (dim != d || padded_keys != keys) std::memset(v_out, 0, static_cast<size_t>(padded_keys * dim * element));
    if (padded_keys != keys) std::memset(k_out, 0, static_cast<size_t>(padded_keys * d * element));
    for (int64_t key = 0; key < keys;) {
      const int64_t token = begin + key, in_block = token % order_.block_size;
      const int64_t block = table[token / order_.block_size];
      // A run stays inside a cache block and inside a panel.
      const int64_t run = std::min({keys - key, order_.block_size - in_block, kPanel - key % kPanel});
      const char* k = order_.k(args_.kv, block, kv_head) + in_block * element * pair;
      char* k_to = k_out + key / kPanel * panel_bytes + key % kPanel * element * pair;
      for (int64_t i = 0; i < d / pair; ++i)
        std::memcpy(k_to + i * kPanel * element * pair, k + i * order_.k_stride(),
                    static_cast<size_t>(run * element * pair));
      copy_values(order_.v(args_.kv, block, kv_head), in_block, run, v_out, key, dim);
      key += run;
    }
    KeyValueBlock kv;
    kv.keys = padded_keys;
    kv.k_stride = kPanel * element * pair;
    kv.v = v_out;
    kv.v_stride = dim * element * pair;
    for (int64_t p = 0; p < padded_keys / kPanel; ++p) kv.k_panels[p] = k_out + p * panel_bytes;
    return kv;
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
