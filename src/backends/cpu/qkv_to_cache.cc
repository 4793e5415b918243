#include "backends/cpu/kernels.h"
#include "backends/cpu/kv_block.h"
#include "ops/attention.h"

namespace tessera::cpu {
namespace {

/// x[i], x[i + d / 2] rotated by angle i; cos_sin holds d / 2 cosines, then d / 2 sines.
void rotate(float* x, const float* cos_sin, int64_t d) {
  const int64_t half = d / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos_sin[i] - b * cos_sin[half + i];
    x[i + half] = b * cos_sin[i] + a * cos_sin[half + i];
  }
}

class Token {
 public:
  Token(CpuStream& stream, const QkvToCacheArgs& args, float* row)
      : leaf_(stream.leaf), args_(args), order_(args.kv.layout), row_(row) {}

  void run(int64_t token) const {
    const int64_t d = args_.head_dim;
    const Element type = element_of(args_.qkv.dtype);
    const float* angles = args_.cos_sin.row<const float>(token);
    char* packed = static_cast<char*>(args_.qkv.slice(token, 1).data);
    leaf_.load_row(packed, type, args_.qkv.row_elements(), row_);
    for (int64_t h = 0; h < args_.heads + args_.kv_heads; ++h) {
      const Tensor& weight = h < args_.heads ? args_.q_norm : args_.k_norm;
      float* x = row_ + h * d;
      if (weight) normalise(x, weight);
      rotate(x, angles, d);
    }
    leaf_.store_row(row_, args_.heads * d, 1.0f, packed, type);
    const int32_t slot = args_.slots.ptr<const int32_t>()[token];
    if (slot < 0) return;
    for (int64_t h = 0; h < args_.kv_heads; ++h) write(slot, h);
  }

 private:
  void normalise(float* x, const Tensor& weight) const {
    leaf_.norm_row({.x = x, .n = args_.head_dim, .weight = weight.ptr<const float>(), .eps = args_.norm_eps, .out = x});
  }

  void write(int64_t slot, int64_t head) const {
    const int64_t block = slot / order_.block_size, in_block = slot % order_.block_size, d = args_.head_dim;
    char* k = order_.k(args_.kv, block, head);
    char* v = order_.v(args_.kv, block, head);
    const float* k_row = row_ + (args_.heads + head) * d;
    const float* v_row = row_ + (args_.heads + args_.kv_heads + head) * d;
    dispatch_float(args_.kv.layout.dtype, "qkv_to_cache", [&](auto zero) {
      using T = decltype(zero);
      T* k_out = reinterpret_cast<T*>(k);
      T* v_out = reinterpret_cast<T*>(v);
      for (int64_t i = 0; i < d; ++i) {
        k_out[order_.k_index(in_block, i)] = from_float<T>(k_row[i]);
        v_out[order_.v_index(in_block, i)] = from_float<T>(v_row[i]);
      }
    });
  }

  const LeafKernels& leaf_;
  const QkvToCacheArgs& args_;
  const KvBlockOrder order_;
  float* row_;
};

}  // namespace

void qkv_to_cache(Stream& s, const QkvToCacheArgs& args) {
  CpuStream& stream = cpu_stream(s);
  parallel_rows(stream, args.qkv.rows(), 8, [&](int64_t begin, int64_t end, int thread) {
    Scratch& scratch = stream.scratch_of(thread);
    scratch.reset();
    const Token token(stream, args, scratch.take<float>(args.qkv.row_elements()));
    for (int64_t t = begin; t < end; ++t) token.run(t);
  });
}

}  // namespace tessera::cpu
