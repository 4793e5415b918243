#include "ops/decoder_layer.h"

#include <cmath>

#include "tests/ops/reference.h"

namespace tessera::testing {
namespace {

struct Dims {
  int64_t hidden, ffn;
  int heads, kv_heads, head_dim;
  int64_t width() const { return int64_t{heads + 2 * kv_heads} * head_dim; }
};
/// Of InternVL's 1B, which the GPU's kernels are made for.
constexpr Dims kOneB = {896, 4864, 14, 2, 64};

/// A layer's numbers and the step's: x, the newest token of a sequence whose older keys and values are rows of `older`.
struct Layer {
  Dims s;
  Matrix x, input_norm, post_norm, qkv, bias, o, gate_up, down, cos_sin, older;
  float eps = 1e-5f;

  Layer(const Dims& s, DType dtype, int64_t keys = 1) : s(s) {
    const auto weight = [&](int64_t rows, int64_t cols, uint64_t seed) {
      return random_matrix(rows, cols, dtype, seed, 1.0 / std::sqrt(static_cast<double>(cols)));
    };
    x = random_matrix(1, s.hidden, DType::kF32, 1, 3.0);
    input_norm = random_matrix(1, s.hidden, DType::kF32, 2, 0.3, 1.0);
    post_norm = random_matrix(1, s.hidden, DType::kF32, 3, 0.3, 1.0);
    qkv = weight(s.width(), s.hidden, 4);
    bias = random_matrix(1, s.width(), DType::kF32, 5);
    o = weight(s.hidden, int64_t{s.heads} * s.head_dim, 6);
    gate_up = weight(2 * s.ffn, s.hidden, 7);
    down = weight(s.hidden, s.ffn, 8);
    const Matrix angles = random_matrix(1, s.head_dim / 2, DType::kF32, 9, 3.0);
    cos_sin = zeros(1, s.head_dim, DType::kF32);
    for (int64_t c = 0; c < s.head_dim / 2; ++c) {
      cos_sin.at(0, c) = rounded(std::cos(angles.at(0, c)), DType::kF32);
      cos_sin.at(0, c + s.head_dim / 2) = rounded(std::sin(angles.at(0, c)), DType::kF32);
    }
    take_keys(keys, dtype);
  }
  void take_keys(int64_t keys, DType dtype) { older = random_matrix(keys - 1, s.width(), dtype, 10); }
};

/// On a device.
struct Weights {
  const Weight *qkv, *o, *gate_up, *down;
  Weights(Device& d, const Layer& l) : qkv(d.weight(l.qkv)), o(d.weight(l.o)), gate_up(d.weight(l.gate_up, WeightUse::kGated)), down(d.weight(l.down)) {}
};

Matrix rounded_to(Matrix m, DType dtype) {
  m.dtype = dtype;
  for (double& v : m.values) v = rounded(v, dtype);
  return m;
}

/// The definition, rounded where a product's input is.
Matrix expected(const Layer& l, bool with_bias, DType dtype) {
  const Dims& s = l.s;
  const int64_t d = s.head_dim, keys = l.older.rows + 1;
  Matrix row = ref_product(rounded_to(ref_norm(l.x, NormKind::kRms, l.input_norm, nullptr, l.eps), dtype), l.qkv);
  for (int64_t i = 0; i < s.width(); ++i) row.at(0, i) += with_bias ? l.bias.at(0, i) : 0.0;
  for (int64_t h = 0; h < s.heads + s.kv_heads; ++h) ref_rotate(&row.values[static_cast<size_t>(h * d)], l.cos_sin.values.data(), d);
  row = rounded_to(row, dtype);
  Matrix all = zeros(keys, s.width(), dtype);
  for (int64_t t = 0; t < keys; ++t)
    for (int64_t i = 0; i < s.width(); ++i) all.at(t, i) = t + 1 < keys ? l.older.at(t, i) : row.at(0, i);
  Matrix attended = zeros(1, int64_t{s.heads} * d, dtype);
  for (int64_t h = 0; h < s.heads; ++h) {
    const int64_t kv = h / (s.heads / s.kv_heads);
    const Matrix part = ref_attention(ref_columns(row, h * d, d), ref_columns(all, (s.heads + kv) * d, d), ref_columns(all, (s.heads + s.kv_heads + kv) * d, d),
                                      1 / std::sqrt(static_cast<double>(d)), {keys});
    for (int64_t i = 0; i < d; ++i) attended.at(0, h * d + i) = part.at(0, i);
  }
  const auto plus = [](Matrix a, const Matrix& b) {
    for (size_t i = 0; i < a.values.size(); ++i) a.values[i] += b.values[i];
    return a;
  };
  const Matrix x = plus(ref_product(rounded_to(attended, dtype), l.o), l.x);
  const Matrix raw = ref_product(rounded_to(ref_norm(x, NormKind::kRms, l.post_norm, nullptr, l.eps), dtype), l.gate_up);
  Matrix mlp = zeros(1, s.ffn, dtype);
  for (int64_t i = 0; i < s.ffn; ++i) mlp.at(0, i) = rounded(ref_silu(raw.at(0, i)) * raw.at(0, s.ffn + i), dtype);
  return plus(ref_product(mlp, l.down), x);
}

class DecoderLayerTest : public OpTest {
 protected:
  /// A layer's tensors on a device, and one run of it.
  class Run {
   public:
    Run(Device& d, const Layer& l, const Weights& weights, int block_size, bool with_bias, bool surplus = false) : d_(d) {
      const Dims& s = l.s;
      const DType dtype = l.qkv.dtype;
      const int64_t keys = l.older.rows + 1, blocks = (keys + block_size - 1) / block_size;
      view_ = {.layout = {dtype, block_size, s.kv_heads, s.head_dim}, .blocks = blocks};
      const std::vector<unsigned char> nan(view_.layout.block_bytes() * static_cast<size_t>(blocks), 0xff);
      view_.base = d.upload_bytes(nan.data(), 1, static_cast<int64_t>(nan.size())).data;
      // Blocks lie backwards.
      std::vector<int32_t> table, slots;
      for (int64_t b = 0; b < blocks; ++b) table.push_back(static_cast<int32_t>(blocks - 1 - b));
      for (int64_t t = 0; t < keys; ++t) slots.push_back(table[static_cast<size_t>(t / block_size)] * block_size + static_cast<int32_t>(t % block_size));
      if (keys > 1) write_older(l, {slots.begin(), slots.end() - 1});
      const Tensor x = d.upload(l.x), qkv = d.make(dtype, {1, s.width()}), attended = d.make(dtype, {1, int64_t{s.heads} * s.head_dim}), mlp = d.make(dtype, {1, s.ffn});
      const auto norm = [&](const Matrix& weight) { return NormArgs{.weight = d.upload_vector(weight), .eps = l.eps, .out = d.make(dtype, {1, s.hidden})}; };
      args_.project.product = {.x = x, .input_norm = norm(l.input_norm), .weight = weights.qkv, .out = qkv};
      if (with_bias) args_.project.product.bias = d.upload_vector(l.bias);
      args_.project.cache = {.qkv = qkv, .cos_sin = d.upload(l.cos_sin), .slots = d.upload_ints({surplus ? -1 : slots.back()}), .heads = s.heads, .kv_heads = s.kv_heads,
                             .head_dim = s.head_dim, .kv = view_};
      args_.attention = {.shape = {.tokens = 1, .sequences = 1, .decodes = 1, .max_query = 1, .max_kv = keys},
                         .q = qkv.columns(0, int64_t{s.heads} * s.head_dim),
                         .query_offsets = d.upload_ints({0, surplus ? 0 : 1}),
                         .kv_lengths = d.upload_ints({surplus ? 0 : static_cast<int32_t>(keys)}),
                         .block_tables = d.upload_ints(table, 1, blocks),
                         .heads = s.heads,
                         .kv_heads = s.kv_heads,
                         .head_dim = s.head_dim,
                         .scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim)),
                         .kv = view_,
                         .out = attended};
      args_.o = {.x = attended, .weight = weights.o, .residual = x, .out = x};
      args_.gate_up = {.x = x, .input_norm = norm(l.post_norm), .weight = weights.gate_up, .activation = Activation::kSiluMul, .out = mlp};
      args_.down = {.x = mlp, .weight = weights.down, .residual = x, .out = x};
    }

    DecoderLayerArgs& args() { return args_; }
    bool whole() { return decoder_layer(d_.context(), args_); }
    void in_parts() {
      project_qkv(d_.context(), args_.project);
      paged_attention(d_.context(), args_.attention);
      for (const LinearArgs* product : {&args_.o, &args_.gate_up, &args_.down}) linear(d_.context(), *product);
    }
    Matrix x() { return d_.download(args_.down.out); }
    std::vector<char> x_bytes() { return d_.download_bytes(args_.down.out); }
    Matrix cache() {
      return d_.download(Tensor(view_.base, view_.layout.dtype, {1, static_cast<int64_t>(view_.layout.block_bytes() / size_of(view_.layout.dtype)) * view_.blocks}));
    }

   private:
    void write_older(const Layer& l, const std::vector<int32_t>& slots) {
      Matrix unturned = zeros(l.older.rows, l.s.head_dim, DType::kF32);
      for (int64_t t = 0; t < l.older.rows; ++t)
        for (int64_t c = 0; c < l.s.head_dim / 2; ++c) unturned.at(t, c) = 1;
      qkv_to_cache(d_.context(), {.qkv = d_.upload(l.older), .cos_sin = d_.upload(unturned), .slots = d_.upload_ints(slots), .heads = l.s.heads, .kv_heads = l.s.kv_heads,
                                  .head_dim = l.s.head_dim, .kv = view_});
    }

    Device& d_;
    KvView view_;
    DecoderLayerArgs args_;
  };

  /// Devices that must have the kernels: H100 and H200 whole, without imposed limits.
  static bool must_serve(Device& d, DType dtype) {
    const DeviceLimits& limits = d.backend().limits();
    return dtype != DType::kF32 && limits.wgmma && limits.multiprocessors == 132 && limits.shared_memory_optin >= 232448;
  }
  // Roundings of the inputs of four products, of the attended values' softmax, and what the norm's place changes: sums are about 1.
  double tolerance() const { return 16 * unit_roundoff(dtype()); }
};

TEST_P(DecoderLayerTest, OtherShapesAreLeftToTheOperators) {
  Device d = device();
  const Layer layer({96, 64, 4, 2, 32}, dtype(), 5);
  Run run(d, layer, Weights(d, layer), 4, true);
  const std::vector<char> before = run.x_bytes();
  EXPECT_FALSE(run.whole());
  EXPECT_TRUE(run.x_bytes() == before);
  run.in_parts();
  const double tolerance = dtype() == DType::kF32 ? 1e-4 : this->tolerance();
  expect_close(run.x(), expected(layer, true, dtype()), 0, [&](int64_t, int64_t) { return tolerance; });
}

TEST_P(DecoderLayerTest, OneSequenceMatchesTheDefinitionAndTheOperators) {
  if (on_cpu() || emulated() || dtype() == DType::kF32) GTEST_SKIP() << "16-bit weights on a GPU";
  struct Case {
    int64_t keys;
    int block_size;
    bool bias;
  };
  Device d = device();
  Layer layer(kOneB, dtype());
  const Weights weights(d, layer);
  // At the borders of tiles, of shares of keys, and of the room that the first keys have; the most that are served.
  std::vector<Case> cases = {{1, 16, true}, {2, 16, false}, {16, 4, true}, {129, 128, true}, {512, 16, true}, {1024, 16, true}, {1025, 16, false}, {2049, 32, true}};
  if (followed()) cases.clear();  // keys that come early, and as many late ones as there is room for, are what differs
  cases.insert(cases.end(), {{17, 16, true}, {2816, 16, true}});
  for (const Case& c : cases) {
    SCOPED_TRACE(std::to_string(c.keys) + " keys in blocks of " + std::to_string(c.block_size) + (c.bias ? ", biases" : ""));
    layer.take_keys(c.keys, dtype());
    Run whole(d, layer, weights, c.block_size, c.bias), parts(d, layer, weights, c.block_size, c.bias);
    const bool served = whole.whole();
    ASSERT_TRUE(served || !must_serve(d, dtype()));
    if (!served) GTEST_SKIP() << "the device leaves the layer to its operators";
    parts.in_parts();
    const Matrix got = whole.x();
    expect_close(got, expected(layer, c.bias, dtype()), 0, [&](int64_t, int64_t) { return tolerance(); });
    expect_close(got, parts.x(), 0, [&](int64_t, int64_t) { return tolerance(); });
    const Matrix cache = whole.cache(), by_parts = parts.cache();
    int64_t written = 0;
    for (size_t i = 0; i < cache.values.size(); ++i) {
      ASSERT_EQ(std::isnan(cache.values[i]), std::isnan(by_parts.values[i])) << i;
      if (std::isnan(cache.values[i])) continue;
      ++written;
      ASSERT_NEAR(cache.values[i], by_parts.values[i], tolerance()) << i;
    }
    EXPECT_EQ(written, c.keys * 2 * kOneB.kv_heads * kOneB.head_dim);
  }
}

TEST_P(DecoderLayerTest, LayersFollowEachOtherAndRepeatBitForBit) {
  if (on_cpu() || emulated() || dtype() == DType::kF32) GTEST_SKIP() << "16-bit weights on a GPU";
  Device d = device();
  const Layer layer(kOneB, dtype(), 300);
  const Weights weights(d, layer);
  std::vector<char> first;
  const int rounds = followed() ? 1 : 3, layers = followed() ? 1 : 6;  // a checker keeps kernels apart
  for (int round = 0; round < rounds; ++round) {
    Run run(d, layer, weights, 16, true);
    for (int i = 0; i < layers; ++i)  // each takes the x that the one ahead made
      if (!run.whole()) GTEST_SKIP() << "the device leaves the layer to its operators";
    if (round == 0) first = run.x_bytes();
    ASSERT_TRUE(run.x_bytes() == first) << round;
    if (round > 0) continue;
    Run parts(d, layer, weights, 16, true);
    for (int i = 0; i < layers; ++i) parts.in_parts();
    expect_close(run.x(), parts.x(), 0, [&](int64_t, int64_t) { return layers * tolerance(); });
  }
}

TEST_P(DecoderLayerTest, ASurplusSequenceWritesNothing) {
  if (on_cpu() || emulated() || dtype() == DType::kF32) GTEST_SKIP() << "16-bit weights on a GPU";
  Device d = device();
  const Layer layer(kOneB, dtype(), 33);
  Run run(d, layer, Weights(d, layer), 16, true, /*surplus=*/true);
  const Matrix before = run.cache();
  if (!run.whole()) GTEST_SKIP() << "the device leaves the layer to its operators";
  const Matrix after = run.cache();
  for (size_t i = 0; i < before.values.size(); ++i)
    ASSERT_TRUE(before.values[i] == after.values[i] || (std::isnan(before.values[i]) && std::isnan(after.values[i]))) << i;
  for (double v : run.x().values) ASSERT_TRUE(std::isfinite(v));
}

TEST_P(DecoderLayerTest, WhatTheKernelsDoNotDoIsLeftToTheOperators) {
  if (on_cpu() || emulated() || dtype() == DType::kF32) GTEST_SKIP() << "16-bit weights on a GPU";
  Device d = device();
  Layer layer(kOneB, dtype(), 20);
  const Weights weights(d, layer);
  Run run(d, layer, weights, 16, true);
  run.args().project.cache.q_norm = d.upload_vector(random_matrix(1, 64, DType::kF32, 20));
  EXPECT_FALSE(run.whole());
  layer.take_keys(2817, dtype());
  Run too_long(d, layer, weights, 16, true);
  EXPECT_FALSE(too_long.whole());
}

TEST_P(DecoderLayerTest, RefusesOperatorsThatDoNotMeet) {
  Device d = device();
  if (!d.context().kernels->decoder_layer) GTEST_SKIP() << "the backend has no such operator";
  const Layer layer({96, 64, 4, 2, 32}, dtype(), 5);
  Run run(d, layer, Weights(d, layer), 4, true);
  run.args().down.x = d.make(dtype(), {1, 64});
  EXPECT_THROW(run.whole(), CheckFailure);
}

TESSERA_OP_SUITE(DecoderLayerTest);

}  // namespace
}  // namespace tessera::testing
