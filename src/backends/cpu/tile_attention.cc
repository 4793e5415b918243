#include <algorithm>
#include <cstring>

#include "backends/cpu/flash.h"
#include "backends/cpu/kernels.h"
#include "ops/attention.h"

namespace tessera::cpu {
namespace {

constexpr int64_t kRows = 96;

/// K and V of one head of one tile as panels, rounded to the activations' type.
class PackedHead {
 public:
  PackedHead(Element type, int64_t tokens, int64_t head_dim, Scratch& scratch)
      : type_(type),
        tokens_(tokens),
        padded_(round_up(tokens, kPanel)),
        d_(head_dim),
        dim_(padded_head_dim(head_dim)),
        element_(type == kElementF32 ? 4 : 2),
        pair_(type == kElementBF16 ? 2 : 1) {
    k_ = scratch.take<char>(padded_ * d_ * element_);
    v_ = scratch.take<char>(padded_ * dim_ * element_);
  }

  /// Row t of K and V begin at k + t * stride, v + t * stride (bytes).
  void fill(const LeafKernels& leaf, const char* k, const char* v, int64_t stride) {
    for (int64_t t = 0; t < padded_; t += kPanel)
      fill_keys(leaf, k + t * stride, stride, std::min<int64_t>(kPanel, tokens_ - t), k_ + t * d_ * element_);
    std::memset(v_, 0, static_cast<size_t>(padded_ * dim_ * element_));
    for (int64_t t = 0; t < tokens_; t += pair_) {
      char* out = v_ + t * dim_ * element_;
      if (pair_ == 1)
        std::memcpy(out, v + t * stride, static_cast<size_t>(d_ * element_));
      else
        pair_rows(v + t * stride, t + 1 < tokens_ ? v + (t + 1) * stride : nullptr, reinterpret_cast<uint32_t*>(out));
    }
  }

  KeyValueBlock block(int64_t begin) const {
    KeyValueBlock kv;
    kv.keys = std::min(kKeyBlock, padded_ - begin);
    kv.k_stride = kPanel * element_ * pair_;
    kv.v_stride = dim_ * element_ * pair_;
    kv.v = v_ + begin * dim_ * element_;
    for (int64_t p = 0; p < kv.keys / kPanel; ++p) kv.k_panels[p] = k_ + (begin / kPanel + p) * kPanel * d_ * element_;
    return kv;
  }

 private:
  /// One panel: up to 16 keys.
  void fill_keys(const LeafKernels& leaf, const char* k, int64_t stride, int64_t keys, char* panel) const {
    if (type_ != kElementF16) return leaf.transpose_words(k, stride, keys, d_ * element_ / 4, panel);
    auto* out = reinterpret_cast<uint16_t*>(panel);
    std::memset(panel, 0, static_cast<size_t>(kPanel * d_ * element_));
    for (int64_t t = 0; t < keys; ++t) {
      const auto* row = reinterpret_cast<const uint16_t*>(k + t * stride);
      for (int64_t i = 0; i < d_; ++i) out[i * kPanel + t] = row[i];
    }
  }

  /// Two rows of V (the second may be absent: zero) as pairs.
  void pair_rows(const char* even_row, const char* odd_row, uint32_t* out) const {
    const auto* even = reinterpret_cast<const uint16_t*>(even_row);
    const auto* odd = reinterpret_cast<const uint16_t*>(odd_row);
    for (int64_t i = 0; i < d_; ++i) out[i] = even[i];
    if (!odd) return;
    for (int64_t i = 0; i < d_; ++i) out[i] |= static_cast<uint32_t>(odd[i]) << 16;
  }

  Element type_;
  int64_t tokens_, padded_, d_, dim_, element_, pair_;
  char *k_, *v_;
};

}  // namespace

void tile_attention(Stream& s, const TileAttentionArgs& args) {
  CpuStream& stream = cpu_stream(s);
  const int64_t d = args.head_dim, width = int64_t{args.heads} * d;
  const Element type = element_of(args.qkv.dtype), out_type = element_of(args.out.dtype);
  const auto element = static_cast<int64_t>(size_of(args.qkv.dtype));
  const auto out_element = static_cast<int64_t>(size_of(args.out.dtype));
  // One item is one head of one tile: its K and V are packed once.
  stream.pool.parallel_for(args.tiles * args.heads, [&](int64_t item, int thread) {
    Scratch& scratch = stream.scratch_of(thread);
    scratch.reset();
    const int64_t first = item / args.heads * args.tokens, head = item % args.heads;
    PackedHead packed(type, args.tokens, d, scratch);
    const auto row = [&](int64_t t, int64_t part) {
      return static_cast<const char*>(args.qkv.data) +
             ((first + t) * args.qkv.row_stride + part * width + head * d) * element;
    };
    packed.fill(stream.leaf, row(0, 1), row(0, 2), args.qkv.row_stride * element);
    FlashRows flash(stream.leaf, type, kRows, d, args.scale, scratch);
    for (int64_t t = 0; t < args.tokens; t += kRows) {
      const int64_t rows = std::min(kRows, args.tokens - t);
      for (int64_t r = 0; r < rows; ++r) stream.leaf.load_row(row(t + r, 0), type, d, flash.query_row(r));
      flash.start(rows);
      for (int64_t begin = 0; begin < args.tokens; begin += kKeyBlock) {
        std::fill_n(flash.visible(), rows, static_cast<int32_t>(std::min(kKeyBlock, args.tokens - begin)));
        flash.block(packed.block(begin));
      }
      for (int64_t r = 0; r < rows; ++r)
        flash.finish_row(r, static_cast<char*>(args.out.data) + ((first + t + r) * args.out.row_stride + head * d) * out_element,
                         out_type);
    }
  });
}

}  // namespace tessera::cpu
