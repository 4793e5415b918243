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
  void fill(const char* k, const char* v, int64_t stride) {
    if (element_ == 4)
      fill_typed<uint32_t>(k, v, stride);
    else
      fill_typed<uint16_t>(k, v, stride);
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
  template <class T>
  void fill_typed(const char* k, const char* v, int64_t stride) {
    T* k_out = reinterpret_cast<T*>(k_);
    T* v_out = reinterpret_cast<T*>(v_);
    std::memset(k_, 0, static_cast<size_t>(padded_ * d_ * element_));
    std::memset(v_, 0, static_cast<size_t>(padded_ * dim_ * element_));
    for (int64_t t = 0; t < tokens_; ++t) {
      const T* k_row = reinterpret_cast<const T*>(k + t * stride);
      const T* v_row = reinterpret_cast<const T*>(v + t * stride);
      T* panel = k_out + t / kPanel * kPanel * d_;
      T* values = v_out + t / pair_ * pair_ * dim_ + t % pair_;
      for (int64_t i = 0; i < d_; ++i) {
        panel[(i / pair_ * kPanel + t % kPanel) * pair_ + i % pair_] = k_row[i];
        values[i * pair_] = v_row[i];
      }
    }
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
    packed.fill(row(0, 1), row(0, 2), args.qkv.row_stride * element);
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
