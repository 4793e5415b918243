#include "ops/linear.h"
#include "ops/sample.h"

#include <array>
#include <cmath>

#include "tests/ops/reference.h"

namespace tessera::testing {
namespace {

class LinearTest : public OpTest {
 protected:
  // Each of k steps rounds a partial sum of at most `magnitude` once; errors add like a random walk, and 4 standard
  // deviations are never seen to be passed. Dot-product instructions drop denormals: below any magnitude here.
  static double product_error(double magnitude, int64_t k) {
    return 4 * 0x1p-24 * std::sqrt(static_cast<double>(k) + 8) * magnitude + 1e-30;
  }
};

TEST_P(LinearTest, MatchesTheDefinitionAtOddSizes) {
  Device d = device();
  struct Shape {
    int64_t m, n, k;
  };
  for (const Shape s : {Shape{1, 1, 1}, Shape{1, 17, 7}, Shape{2, 16, 32}, Shape{3, 33, 65}, Shape{5, 100, 300},
                        Shape{12, 64, 64}, Shape{13, 31, 129}, Shape{25, 200, 94}, Shape{97, 70, 66},
                        Shape{1, 640, 2050}, Shape{7, 96, 1100}, Shape{110, 600, 40}}) {
    const Matrix x = random_matrix(s.m, s.k, dtype(), 1), w = random_matrix(s.n, s.k, dtype(), 2);
    const Tensor out = d.make(DType::kF32, {s.m, s.n});
    linear(d.context(), {.x = d.upload(x), .weight = d.weight(w), .out = out});
    const Matrix magnitude = ref_product_magnitude(x, w);
    SCOPED_TRACE(std::to_string(s.m) + " x " + std::to_string(s.n) + " x " + std::to_string(s.k));
    expect_close(d.download(out), ref_product(x, w), 0,
                 [&](int64_t r, int64_t c) { return product_error(magnitude.at(r, c), s.k); });
  }
}

TEST_P(LinearTest, AppliesTheWholeEpilogue) {
  Device d = device();
  for (int64_t m : {1, 4, 30})
    for (Activation activation : {Activation::kNone, Activation::kGelu}) {
      const int64_t n = 53, k = 48;
      const Matrix x = random_matrix(m, k, dtype(), 3), w = random_matrix(n, k, dtype(), 4, 0.3);
      const Matrix bias = random_matrix(1, n, DType::kF32, 5), scale = random_matrix(1, n, DType::kF32, 6);
      const Matrix residual = random_matrix(m, n, DType::kF32, 7);
      const Matrix norm_weight = random_matrix(1, n, DType::kF32, 8);
      const Tensor out = d.upload(residual), normed = d.make(dtype(), {m, n});
      LinearArgs args{.x = d.upload_strided(x, 5, 3),
                      .weight = d.weight(w),
                      .bias = d.upload_vector(bias),
                      .activation = activation,
                      .scale = d.upload_vector(scale),
                      .residual = out,
                      .out = out};
      args.next_norm = {.kind = NormKind::kRms, .weight = d.upload_vector(norm_weight), .eps = 1e-6f, .out = normed};
      linear(d.context(), args);
      Matrix expected = ref_product(x, w);
      for (int64_t r = 0; r < m; ++r)
        for (int64_t c = 0; c < n; ++c) {
          double y = expected.at(r, c) + bias.at(0, c);
          if (activation == Activation::kGelu) y = ref_gelu(y);
          expected.at(r, c) = residual.at(r, c) + scale.at(0, c) * y;
        }
      const Matrix got = d.download(out);
      // Products of magnitude about 12; the polynomial of erf is good to 1e-6 of its argument.
      expect_close(got, expected, 1e-6, [](int64_t, int64_t) { return 4e-5; });
      expect_close(d.download(normed), ref_norm(got, NormKind::kRms, norm_weight, nullptr, 1e-6f),
                   unit_roundoff(dtype()) * 1.01, [](int64_t, int64_t) { return 1e-5; });
    }
}

// The last width is more than a GPU's multiprocessors take at once.
TEST_P(LinearTest, MultipliesGatesAndUps) {
  Device d = device();
  for (int64_t m : {1, 6, 26})
    for (int64_t ffn : {8, 40, 130, 26001}) {
      if (ffn > 1000 && (emulated() || m < 26)) continue;
      const int64_t k = 64;
      const Matrix x = random_matrix(m, k, dtype(), 9), w = random_matrix(2 * ffn, k, dtype(), 10, 0.2);
      const Matrix bias = random_matrix(1, 2 * ffn, DType::kF32, 11);
      const Tensor out = d.make(dtype(), {m, ffn});
      linear(d.context(), {.x = d.upload(x),
                           .weight = d.weight(w, WeightUse::kGated),
                           .bias = d.upload_vector(bias),
                           .activation = Activation::kSiluMul,
                           .out = out});
      const Matrix y = ref_product(x, w);
      Matrix expected = zeros(m, ffn, dtype());
      for (int64_t r = 0; r < m; ++r)
        for (int64_t c = 0; c < ffn; ++c)
          expected.at(r, c) = ref_silu(y.at(r, c) + bias.at(0, c)) * (y.at(r, ffn + c) + bias.at(0, ffn + c));
      expect_close(d.download(out), expected, unit_roundoff(dtype()) * 1.01 + 2e-6, [](int64_t, int64_t) { return 5e-5; });
    }
}

// Kernels change with the number of rows, and cut columns and K by what the device has: none may depend on multiples.
TEST_P(LinearTest, ServesEveryNumberOfRows) {
  Device d = device();
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{304, 1090}, {61, 200}, {1000, 64}}) {
    const int64_t most = 130;
    const Matrix x = random_matrix(most, k, dtype(), 31), w = random_matrix(n, k, dtype(), 32);
    const Matrix bias = random_matrix(1, n, DType::kF32, 33), residual = random_matrix(most, n, DType::kF32, 34);
    const Tensor in = d.upload(x), add = d.upload(residual);
    const Weight* weight = d.weight(w);
    const Matrix magnitude = ref_product_magnitude(x, w);
    Matrix expected = ref_product(x, w);
    for (int64_t r = 0; r < most; ++r)
      for (int64_t c = 0; c < n; ++c) expected.at(r, c) += bias.at(0, c) + residual.at(r, c);
    for (int64_t m : {1, 2, 7, 8, 9, 15, 16, 17, 24, 32, 33, 63, 64, 65, 100, 127, 128, 129}) {
      SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k));
      const Tensor out = d.make(DType::kF32, {m, n});
      linear(d.context(), {.x = in.slice(0, m), .weight = weight, .bias = d.upload_vector(bias), .residual = add.slice(0, m), .out = out});
      // What a GPU adds to a residual it may have rounded to the weight's dtype, as the reference does.
      const double rounded = on_cpu() || m <= 32 ? 0 : unit_roundoff(dtype());
      expect_close(d.download(out), ref_rows(expected, 0, m), 0, [&, k = k](int64_t r, int64_t c) {
        return product_error(magnitude.at(r, c) + 5, k) + rounded * std::abs(expected.at(r, c) - residual.at(r, c) - bias.at(0, c));
      });
    }
  }
}

// Logits and other f32 results without a residual are never rounded on the way. The last is a vocabulary's: more rows of the
// weight than a GPU's multiprocessors take at once.
TEST_P(LinearTest, LeavesSumsInF32) {
  Device d = device();
  for (const auto& [m, n] : std::vector<std::pair<int64_t, int64_t>>{{300, 512}, {300, 515}, {129, 256}, {35, 52001}}) {
    if (emulated() && n > 1000) continue;
    SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n));
    const int64_t k = 192;
    const Matrix x = random_matrix(m, k, dtype(), 51), w = random_matrix(n, k, dtype(), 52), bias = random_matrix(1, n, DType::kF32, 53);
    const Matrix magnitude = ref_product_magnitude(x, w);
    Matrix expected = ref_product(x, w);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < n; ++c) expected.at(r, c) += bias.at(0, c);
    const Tensor out = d.make(DType::kF32, {m, n});
    linear(d.context(), {.x = d.upload(x), .weight = d.weight(w), .bias = d.upload_vector(bias), .out = out});
    expect_close(d.download(out), expected, 0, [&](int64_t r, int64_t c) { return product_error(magnitude.at(r, c) + 5, k); });
  }
}

TEST_P(LinearTest, GatesServeEveryNumberOfRows) {
  Device d = device();
  const int64_t ffn = 520, k = 264, most = 128;
  const Matrix x = random_matrix(most, k, dtype(), 35), w = random_matrix(2 * ffn, k, dtype(), 36, 0.1);
  const Tensor in = d.upload(x);
  const Weight* weight = d.weight(w, WeightUse::kGated);
  const Matrix y = ref_product(x, w);
  Matrix expected = zeros(most, ffn, dtype());
  for (int64_t r = 0; r < most; ++r)
    for (int64_t c = 0; c < ffn; ++c) expected.at(r, c) = ref_silu(y.at(r, c)) * y.at(r, ffn + c);
  for (int64_t m : {2, 8, 9, 16, 30, 64, 70, 128}) {
    SCOPED_TRACE(m);
    const Tensor out = d.make(dtype(), {m, ffn});
    linear(d.context(), {.x = in.slice(0, m), .weight = weight, .activation = Activation::kSiluMul, .out = out});
    // A GPU's products of many rows round gate and up to the weight's dtype first, as the reference does.
    const double rounded = on_cpu() ? 0 : unit_roundoff(dtype());
    expect_close(d.download(out), ref_rows(expected, 0, m), unit_roundoff(dtype()) * 1.01 + 2e-6, [&](int64_t r, int64_t c) {
      const double gate = y.at(r, c), up = y.at(r, ffn + c);
      return 5e-5 + rounded * std::abs(up) * (1.1 * std::abs(gate) + std::abs(ref_silu(gate)));
    });
  }
}

TEST_P(LinearTest, NormsItsInputFirst) {
  Device d = device();
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{70, 64}, {33, 1290}, {150, 896}, {40, 5120}})
    for (int64_t m : {1, 2, 3, 5, 8, 11, 40}) {
      SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k));
      const Matrix x = random_matrix(m, k, DType::kF32, 37, 7.0), w = random_matrix(n, k, dtype(), 38);
      const Matrix norm_weight = random_matrix(1, k, DType::kF32, 39, 0.5, 1.0);
      const Tensor out = d.make(DType::kF32, {m, n});
      linear(d.context(), {.x = d.upload(x),
                           .input_norm = {.weight = d.upload_vector(norm_weight), .eps = 1e-6f, .out = d.make(dtype(), {m, k})},
                           .weight = d.weight(w),
                           .out = out});
      const Matrix normed = ref_norm(x, NormKind::kRms, norm_weight, nullptr, 1e-6f);
      const Matrix magnitude = ref_product_magnitude(normed, w);
      // Each normed element is rounded once; their errors add like a random walk.
      const double rounding = 6 * (dtype() == DType::kF32 ? 0x1p-22 : unit_roundoff(dtype())) / std::sqrt(static_cast<double>(k));
      expect_close(d.download(out), ref_product(normed, w), 0,
                   [&, k = k](int64_t r, int64_t c) { return rounding * magnitude.at(r, c) + product_error(magnitude.at(r, c), k); });
    }
}

// A norm between two products, which a GPU may make in halves: whoever makes it, the second product is that of normed rows.
TEST_P(LinearTest, PreparesTheNormBehindIt) {
  Device d = device();
  const DeviceLimits& limits = d.backend().limits();
  const bool prepares = limits.wgmma && limits.shared_memory_optin >= (200 << 10) && dtype() == DType::kBF16;
  const int64_t ffn = 264, width = 300;
  const float eps = 0.5f;
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{896, 896}, {328, 2056}})
    for (int64_t m : {1, 9, 17, 32, 50, 64, 65}) {
      if ((emulated() || on_cpu()) && m > 9) continue;  // who prepares nothing is asked for no more than the contract
      SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k));
      const Matrix x = random_matrix(m, k, dtype(), 81), w = random_matrix(n, k, dtype(), 82, 0.1);
      const Matrix residual = random_matrix(m, n, DType::kF32, 83, 2.0), norm_weight = random_matrix(1, n, DType::kF32, 84, 0.5, 1.0);
      const Tensor stream = d.upload(residual), rows = d.make(dtype(), {m, n});
      PreparedNorm norm{.weight = d.upload_vector(norm_weight), .rows = rows, .squares = d.make(DType::kF32, {kPreparedRows, kPreparedParts}), .parts = 1};
      linear(d.context(), {.x = d.upload(x), .weight = d.weight(w), .residual = stream, .out = stream, .prepares = &norm});
      if (m <= 8 || m > 64 || !prepares) {
        EXPECT_EQ(norm.parts, 0);
      } else if (m > 16) {  // few rows may leave each block all of K
        EXPECT_GT(norm.parts, 0);
      }
      const Matrix got = d.download(stream), normed = ref_norm(got, NormKind::kRms, norm_weight, nullptr, eps);
      const Matrix product = ref_product(x, w);  // which may be rounded before the residual joins it
      Matrix expected = product;
      for (size_t i = 0; i < expected.values.size(); ++i) expected.values[i] += residual.values[i];
      expect_close(got, expected, 2 * unit_roundoff(dtype()), [&](int64_t r, int64_t c) { return 1e-3 + unit_roundoff(dtype()) * std::abs(product.at(r, c)); });

      const NormArgs before{.weight = norm.weight, .eps = eps, .out = rows};
      const Matrix gates = random_matrix(2 * ffn, n, dtype(), 85, 0.05), plain = random_matrix(width, n, dtype(), 86);
      const Matrix bias = random_matrix(1, 2 * ffn, DType::kF32, 87);
      const Tensor gated = d.make(dtype(), {m, ffn}), sums = d.make(DType::kF32, {m, width});
      linear(d.context(), {.x = stream, .input_norm = before, .prepared = &norm, .weight = d.weight(gates, WeightUse::kGated),
                           .bias = d.upload_vector(bias), .activation = Activation::kSiluMul, .out = gated});
      linear(d.context(), {.x = stream, .input_norm = before, .prepared = &norm, .weight = d.weight(plain), .out = sums});
      const Matrix y = ref_product(normed, gates);
      Matrix products = zeros(m, ffn, dtype());
      for (int64_t r = 0; r < m; ++r)
        for (int64_t c = 0; c < ffn; ++c)
          products.at(r, c) = ref_silu(y.at(r, c) + bias.at(0, c)) * (y.at(r, ffn + c) + bias.at(0, ffn + c));
      const double roundoff = dtype() == DType::kF32 ? 0x1p-20 : unit_roundoff(dtype());
      expect_close(d.download(gated), products, 2 * roundoff, [&](int64_t r, int64_t c) {
        return 1e-4 + 4 * roundoff * (std::abs(y.at(r, c)) + std::abs(y.at(r, ffn + c)) + 2) * (std::abs(y.at(r, c)) + std::abs(bias.at(0, c)) + 1);
      });
      // Each element of the rows is rounded once; their errors add like a random walk.
      const Matrix magnitude = ref_product_magnitude(normed, plain);
      const double rounding = 6 * roundoff / std::sqrt(static_cast<double>(n));
      expect_close(d.download(sums), ref_product(normed, plain), 0,
                   [&, n = n](int64_t r, int64_t c) { return rounding * magnitude.at(r, c) + product_error(magnitude.at(r, c), n); });
    }
}

// Logits of which only a choice is asked, whoever finds it: the product, which then does not write them, or sample() in what it wrote.
TEST_P(LinearTest, FindsTheChoicesOfItsRows) {
  Device d = device();
  const DeviceLimits& limits = d.backend().limits();
  const bool finds = limits.wgmma && limits.shared_memory_optin >= (200 << 10) && dtype() != DType::kF32;
  const int64_t k = 128, n = finds ? 70003 : 605, valid = n - 3;
  Matrix x = random_matrix(64, k, dtype(), 91), w = random_matrix(n, k, dtype(), 92);
  for (int64_t i = 0; i < k; ++i) {  // of the first row two equals are the largest, and a larger one is not allowed
    x.at(0, i) = 1;
    w.at(17, i) = w.at(n - 40, i) = 0.5;
    w.at(n - 2, i) = 0.75;
  }
  const Matrix y = ref_product(x, w), magnitude = ref_product_magnitude(x, w);
  const Weight* weight = d.weight(w);
  for (int64_t m : {1, 9, 20, 33, 64}) {
    SCOPED_TRACE(m);
    const Tensor out = d.make(DType::kF32, {m, n + 64 - n % 64}).columns(0, n);
    const auto room = static_cast<int64_t>(d.backend().sizing().sample_workspace_bytes(m, n));
    FoundChoices choices{.room = d.make(DType::kU8, {room}), .valid_ids = valid, .parts = 7};
    linear(d.context(), {.x = d.upload(ref_rows(x, 0, m)), .weight = weight, .out = out, .choices = &choices});
    EXPECT_EQ(choices.parts > 0, finds && m > 8);
    const std::vector<SamplingRow> rows(static_cast<size_t>(m));
    SampleArgs args{.logits = out, .valid_ids = valid, .params = d.upload_bytes(rows.data(), m, sizeof(SamplingRow)), .found = &choices};
    args.workspace = d.make(DType::kU8, {room});
    args.out_ids = d.make(DType::kI32, {m});
    args.out_logprobs = d.make(DType::kF32, {m});
    sample(d.context(), args);
    const std::vector<int32_t> ids = d.download_ints(args.out_ids);
    const Matrix logprobs = d.download(args.out_logprobs);
    EXPECT_EQ(ids[0], 17);
    for (int64_t r = 0; r < m; ++r) {
      const int32_t id = ids[static_cast<size_t>(r)];
      ASSERT_TRUE(id >= 0 && id < valid);
      double largest = -1e300, sum = 0, error = 0;
      for (int64_t c = 0; c < n; ++c) {
        if (c < valid) largest = std::max(largest, y.at(r, c));
        error = std::max(error, product_error(magnitude.at(r, c), k));
      }
      for (int64_t c = 0; c < n; ++c) sum += std::exp(y.at(r, c) - largest);
      EXPECT_GE(y.at(r, id), largest - 2 * error);
      EXPECT_NEAR(logprobs.at(r, 0), y.at(r, id) - largest - std::log(sum), 2 * error + 1e-4);
    }
  }
}

// Everything in 16 bits, as a tower's stream is kept where norms are folded. Rows have means that a deviation must not see.
TEST_P(LinearTest, DividesByDeviationsAndSumsItsRows) {
  Device d = device();
  if (!d.backend().sizing().precision(dtype()).folded_norms) GTEST_SKIP() << "this backend folds no norms";
  const int64_t hidden = 192, wide = 320;
  for (int64_t m : {1, 77, 128, 200, 300, 700}) {
    SCOPED_TRACE(m);
    const Matrix x = random_matrix(m, wide, dtype(), 61), to_hidden = random_matrix(hidden, wide, dtype(), 62, 0.1);
    const Matrix residual = random_matrix(m, hidden, dtype(), 63, 2.0, 1.5), bias = random_matrix(1, hidden, DType::kF32, 64);
    const Matrix scale = random_matrix(1, hidden, DType::kF32, 65);
    const Tensor stream = d.upload(residual), sums = d.make(DType::kF32, {m, 2 * hidden / kSumColumns});
    linear(d.context(), {.x = d.upload(x), .weight = d.weight(to_hidden), .bias = d.upload_vector(bias), .scale = d.upload_vector(scale),
                         .residual = stream, .out = stream, .out_sums = sums});
    Matrix expected = ref_product(x, to_hidden);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < hidden; ++c) expected.at(r, c) = residual.at(r, c) + scale.at(0, c) * (expected.at(r, c) + bias.at(0, c));
    const Matrix got = d.download(stream), got_sums = d.download(sums);
    expect_close(got, expected, unit_roundoff(dtype()) * 1.01, [&](int64_t r, int64_t c) {
      return 1e-4 + 1.1 * unit_roundoff(dtype()) * std::abs(expected.at(r, c) - residual.at(r, c) - scale.at(0, c) * bias.at(0, c));
    });
    Matrix expected_sums = zeros(m, 2 * hidden / kSumColumns, DType::kF32);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < hidden; ++c) {
        expected_sums.at(r, c / kSumColumns * 2) += got.at(r, c);
        expected_sums.at(r, c / kSumColumns * 2 + 1) += got.at(r, c) * got.at(r, c);
      }
    expect_close(got_sums, expected_sums, 1e-5, [](int64_t, int64_t) { return 1e-4; });

    const Matrix weight = random_matrix(wide, hidden, dtype(), 66, 0.3), wide_bias = random_matrix(1, wide, DType::kF32, 67);
    const float eps = 1e-3f;
    for (Activation activation : {Activation::kNone, Activation::kGelu}) {
      const Tensor out = d.make(dtype(), {m, wide});
      linear(d.context(), {.x = stream, .weight = d.weight(weight), .bias = d.upload_vector(wide_bias), .activation = activation, .out = out, .x_sums = sums, .x_eps = eps});
      Matrix y = ref_product(got, weight);
      Matrix rounding = zeros(m, wide, DType::kF32);
      for (int64_t r = 0; r < m; ++r) {
        double mean = 0, variance = 0;
        for (int64_t c = 0; c < hidden; ++c) mean += got.at(r, c) / static_cast<double>(hidden);
        for (int64_t c = 0; c < hidden; ++c) variance += (got.at(r, c) - mean) * (got.at(r, c) - mean) / static_cast<double>(hidden);
        for (int64_t c = 0; c < wide; ++c) {
          const double divided = y.at(r, c) / std::sqrt(variance + static_cast<double>(eps)), sum = divided + wide_bias.at(0, c);
          rounding.at(r, c) = 1.2 * unit_roundoff(dtype()) * std::abs(divided) + 1e-4;
          y.at(r, c) = activation == Activation::kGelu ? ref_gelu(sum) : sum;
        }
      }
      expect_close(d.download(out), y, unit_roundoff(dtype()) * 1.01, [&](int64_t r, int64_t c) { return rounding.at(r, c); });
    }
  }
}

// The last tiles are split along K where they would leave the device idle; some are one block high.
TEST_P(LinearTest, SumsOfSplitTilesMeet) {
  Device d = device();
  if (on_cpu()) GTEST_SKIP() << "a GPU's cut of a product";
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{1025, 1024, 1024}, {300, 512, 2048}, {385, 1032, 448}, {130, 256, 128}}) {
    SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k));
    const Matrix x = random_matrix(m, k, dtype(), 71), w = random_matrix(n, k, dtype(), 72), bias = random_matrix(1, n, DType::kF32, 73);
    const Matrix magnitude = ref_product_magnitude(x, w);
    Matrix expected = ref_product(x, w);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < n; ++c) expected.at(r, c) += bias.at(0, c);
    const Tensor in = d.upload(x), constants = d.upload_vector(bias);
    const Weight* weight = d.weight(w);
    for (int again = 0; again < 3; ++again) {
      const Tensor out = d.make(DType::kF32, {m, n});
      linear(d.context(), {.x = in, .weight = weight, .bias = constants, .out = out});
      expect_close(d.download(out), expected, 0, [&, k = k](int64_t r, int64_t c) { return product_error(magnitude.at(r, c) + 5, k); });
    }
  }
}

// More tiles than a GPU makes at once, so that ends hide behind the next tile's products, and a few left over that are split. Rows from
// all over the tiles are compared.
TEST_P(LinearTest, EndsOfManyTilesFindTheirPlaces) {
  if (on_cpu() || emulated()) GTEST_SKIP() << "a GPU's tiles";
  Device d = device();
  const int64_t m = 4360, n = 1056, k = 512;
  const Matrix x = random_matrix(m, k, dtype(), 81), w = random_matrix(n, k, dtype(), 82, 0.05);
  const Matrix bias = random_matrix(1, n, DType::kF32, 83), scale = random_matrix(1, n, DType::kF32, 84);
  const Tensor in = d.upload(x), constants = d.upload_vector(bias), factors = d.upload_vector(scale);
  const Weight *weight = d.weight(w), *gates = d.weight(w, WeightUse::kGated);
  std::vector<int64_t> chosen{0, 7, 8, 127, 128, m - 1};
  for (int64_t r = 300; r < m; r += 397) chosen.push_back(r);
  Matrix some = zeros(static_cast<int64_t>(chosen.size()), k, dtype());
  for (size_t i = 0; i < chosen.size(); ++i)
    for (int64_t c = 0; c < k; ++c) some.at(static_cast<int64_t>(i), c) = x.at(chosen[i], c);
  const Matrix y = ref_product(some, w);
  const double u = unit_roundoff(dtype());
  const auto compare = [&](const char* what, const Tensor& out, double loose, const auto& expected) {
    SCOPED_TRACE(what);
    const Matrix got = d.download(out);
    for (size_t i = 0; i < chosen.size(); ++i)
      for (int64_t c = 0; c < out.row_elements(); ++c) {
        const double e = expected(static_cast<int64_t>(i), c);
        ASSERT_NEAR(got.at(chosen[i], c), e, loose * (std::abs(e) + std::abs(y.at(static_cast<int64_t>(i), c)) + 1e-3) + 1e-4)
            << "row " << chosen[i] << ", column " << c;
      }
  };
  const auto with_bias = [&](int64_t i, int64_t c) { return y.at(i, c) + bias.at(0, c); };
  const Tensor half = d.make(dtype(), {m, n}), gated = d.make(dtype(), {m, n / 2});
  linear(d.context(), {.x = in, .weight = weight, .bias = constants, .out = half});
  compare("bias", half, 1.1 * u, with_bias);
  linear(d.context(), {.x = in, .weight = weight, .bias = constants, .activation = Activation::kGelu, .out = half});
  compare("GELU", half, 2 * u, [&](int64_t i, int64_t c) { return ref_gelu(with_bias(i, c)); });
  linear(d.context(), {.x = in, .weight = gates, .activation = Activation::kSiluMul, .out = gated});
  compare("gates", gated, 16 * u, [&](int64_t i, int64_t c) { return ref_silu(y.at(i, c)) * y.at(i, n / 2 + c); });
  for (DType stream : {DType::kF32, dtype()}) {
    const Matrix beside = random_matrix(m, n, stream, 85);
    const Tensor out = d.upload(beside);
    linear(d.context(), {.x = in, .weight = weight, .bias = constants, .scale = factors, .residual = out, .out = out});
    compare(stream == DType::kF32 ? "f32 residual" : "residual", out, 4 * u,
            [&](int64_t i, int64_t c) { return beside.at(chosen[static_cast<size_t>(i)], c) + scale.at(0, c) * with_bias(i, c); });
  }
}

// A few rows more than whole blocks of 128, as a vision tile has: up to two, the GPU's tiles of other rows carry them.
TEST_P(LinearTest, RowsLeftOverByBlocksRideAlong) {
  if (on_cpu() || emulated()) GTEST_SKIP() << "a GPU's tiles";
  Device d = device();
  const double u = unit_roundoff(dtype());
  const float eps = 1e-3f;
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {1025, 4096, 256}, {1026, 4064, 64}, {1026, 3072, 1152}, {1027, 4096, 64}, {890, 4096, 320}}) {
    SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k));
    const Matrix x = random_matrix(m, k, dtype(), 91, 1.0, 0.5), w = random_matrix(n, k, dtype(), 92, 0.1), bias = random_matrix(1, n, DType::kF32, 93);
    std::vector<int64_t> chosen{0, 127, 128, 517, m - 3};
    for (int64_t r = m / 128 * 128; r < m; ++r) chosen.push_back(r);
    Matrix some = zeros(static_cast<int64_t>(chosen.size()), k, dtype()), sums = zeros(m, 2 * k / kSumColumns, DType::kF32);
    for (size_t i = 0; i < chosen.size(); ++i)
      for (int64_t c = 0; c < k; ++c) some.at(static_cast<int64_t>(i), c) = x.at(chosen[i], c);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < k; ++c) {
        sums.at(r, c / kSumColumns * 2) += x.at(r, c);
        sums.at(r, c / kSumColumns * 2 + 1) += x.at(r, c) * x.at(r, c);
      }
    const Matrix y = ref_product(some, w);
    const bool folded = d.backend().sizing().precision(dtype()).folded_norms;
    const Tensor in = d.upload(x), row_sums = d.upload(sums), constants = d.upload_vector(bias);
    const Weight* weight = d.weight(w);
    for (Activation activation : {Activation::kNone, Activation::kGelu})
      for (bool divides : {false, true}) {
        if (divides && !folded) continue;
        SCOPED_TRACE(divides);
        const Tensor out = d.make(dtype(), {m, n});
        LinearArgs args{.x = in, .weight = weight, .bias = constants, .activation = activation, .out = out};
        if (divides) args.x_sums = row_sums, args.x_eps = eps;
        linear(d.context(), args);
        const Matrix got = d.download(out);
        for (size_t i = 0; i < chosen.size(); ++i) {
          const auto row = static_cast<int64_t>(i);
          double mean = 0, squares = 0;
          for (int64_t c = 0; c < k; ++c) mean += some.at(row, c) / static_cast<double>(k), squares += some.at(row, c) * some.at(row, c) / static_cast<double>(k);
          const double factor = divides ? 1 / std::sqrt(squares - mean * mean + static_cast<double>(eps)) : 1;
          for (int64_t c = 0; c < n; ++c) {
            const double product = y.at(row, c) * factor, sum = product + bias.at(0, c);
            const double expected = activation == Activation::kGelu ? ref_gelu(sum) : sum;
            ASSERT_NEAR(got.at(chosen[i], c), expected, 1.3 * u * (std::abs(expected) + std::abs(product)) + 1e-3) << "row " << chosen[i] << ", column " << c;
          }
        }
      }
  }
}

// The same with a residual stream in 16 bits and the sums of its rows, of which those that ride are made by several blocks.
TEST_P(LinearTest, StreamsOfRowsThatRideKeepTheirSums) {
  if (on_cpu() || emulated()) GTEST_SKIP() << "a GPU's tiles";
  Device d = device();
  const double u = unit_roundoff(dtype());
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{1025, 1024, 1024}, {1026, 992, 2048}, {1025, 768, 64}, {1000, 1024, 448}}) {
    SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k));
    const Matrix x = random_matrix(m, k, dtype(), 101), w = random_matrix(n, k, dtype(), 102, 0.1), residual = random_matrix(m, n, dtype(), 103, 2.0);
    const Matrix bias = random_matrix(1, n, DType::kF32, 104), scale = random_matrix(1, n, DType::kF32, 105);
    const std::vector<int64_t> chosen{0, 63, 64, 517, 999, m - 2, m - 1};
    Matrix some = zeros(static_cast<int64_t>(chosen.size()), k, dtype());
    for (size_t i = 0; i < chosen.size(); ++i)
      for (int64_t c = 0; c < k; ++c) some.at(static_cast<int64_t>(i), c) = x.at(chosen[i], c);
    const Matrix y = ref_product(some, w);
    const bool summed = d.backend().sizing().precision(dtype()).folded_norms && n % kSumColumns == 0;
    const Tensor in = d.upload(x), constants = d.upload_vector(bias), factors = d.upload_vector(scale);
    const Weight* weight = d.weight(w);
    for (int again = 0; again < 2; ++again) {  // what blocks meet at is left as it was found
      const Tensor stream = d.upload(residual), sums = d.make(DType::kF32, {m, 2 * n / kSumColumns});
      LinearArgs args{.x = in, .weight = weight, .bias = constants, .scale = factors, .residual = stream, .out = stream};
      if (summed) args.out_sums = sums;
      linear(d.context(), args);
      const Matrix got = d.download(stream);
      for (size_t i = 0; i < chosen.size(); ++i)
        for (int64_t c = 0; c < n; ++c) {
          const double product = y.at(static_cast<int64_t>(i), c), beside = residual.at(chosen[i], c), expected = beside + scale.at(0, c) * (product + bias.at(0, c));
          ASSERT_NEAR(got.at(chosen[i], c), expected, 1.3 * u * (std::abs(expected) + std::abs(scale.at(0, c) * product)) + 1e-3) << "row " << chosen[i] << ", column " << c;
        }
      if (!summed) continue;
      Matrix expected_sums = zeros(m, 2 * n / kSumColumns, DType::kF32);
      for (int64_t r = 0; r < m; ++r)
        for (int64_t c = 0; c < n; ++c) {
          expected_sums.at(r, c / kSumColumns * 2) += got.at(r, c);
          expected_sums.at(r, c / kSumColumns * 2 + 1) += got.at(r, c) * got.at(r, c);
        }
      expect_close(d.download(sums), expected_sums, 1e-5, [](int64_t, int64_t) { return 1e-3; });
    }
  }
}

TEST_P(LinearTest, RoundsF32InputsToTheWeightsType) {
  Device d = device();
  const Matrix x = random_matrix(3, 70, DType::kF32, 12), w = random_matrix(20, 70, dtype(), 13);
  Matrix rounded_x = x;
  for (double& v : rounded_x.values) v = rounded(v, dtype());
  const Tensor out = d.make(DType::kF32, {3, 20});
  linear(d.context(), {.x = d.upload(x), .weight = d.weight(w), .out = out});
  expect_close(d.download(out), ref_product(rounded_x, w), 0, [](int64_t, int64_t) { return 1e-4; });
}

TEST_P(LinearTest, TiedTablesMultiplyToo) {
  Device d = device();
  const Matrix x = random_matrix(2, 36, dtype(), 14), w = random_matrix(45, 36, dtype(), 15);
  const Tensor out = d.make(DType::kF32, {2, 45});
  linear(d.context(), {.x = d.upload(x), .weight = d.weight(w, WeightUse::kTied), .out = out});
  expect_close(d.download(out), ref_product(x, w), 0, [](int64_t, int64_t) { return 5e-5; });
}

// style.md, "The seams that decide speed", 7: a row's result does not depend on its company.
TEST_P(LinearTest, RowsAreBitwiseTheSameInEveryBatchAndForAllThreads) {
  if (!on_cpu()) GTEST_SKIP() << "bitwise independence is the CPU's promise";
  const int64_t m = 131, n = 208, k = 1290;
  const Matrix x = random_matrix(m, k, dtype(), 16), w = random_matrix(n, k, dtype(), 17);
  std::vector<char> whole;
  for (int threads : {1, 2, 3}) {
    Device d = device(threads);
    const Tensor in = d.upload(x), out = d.make(DType::kF32, {m, n});
    const Weight* weight = d.weight(w);
    linear(d.context(), {.x = in, .weight = weight, .out = out});
    const std::vector<char> bytes = d.download_bytes(out);
    if (whole.empty()) whole = bytes;
    ASSERT_TRUE(bytes == whole) << threads << " threads";
    for (const auto& [begin, count] : std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {130, 1}, {7, 2}, {3, 5}, {90, 24}, {1, 97}}) {
      linear(d.context(), {.x = in.slice(begin, count), .weight = weight, .out = out.slice(begin, count)});
      ASSERT_TRUE(d.download_bytes(out) == whole) << "rows " << begin << " + " << count;
    }
  }
}

/// Adds what the other rank would have contributed.
class OtherRank final : public Communicator {
 public:
  OtherRank(Device& device, Matrix part) : device_(device), part_(std::move(part)) {}
  void all_reduce(Stream&, const Tensor& tensor) override {
    Matrix sum = device_.download(tensor);
    for (size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += part_.values[i];
    std::vector<float> floats(sum.values.begin(), sum.values.end());
    device_.backend().upload(floats.data(), tensor);
    device_.backend().synchronize();
  }
  void all_gather_columns(Stream&, const Tensor&, const Tensor&) override {}

 private:
  Device& device_;
  Matrix part_;
};

TEST_P(LinearTest, RowParallelRanksAddBiasAndResidualOnce) {
  Device d = device();
  const int64_t m = 4, n = 24, k = 32;
  const Matrix x = random_matrix(m, k, dtype(), 18), w = random_matrix(n, k, dtype(), 19, 0.3);
  const Matrix bias = random_matrix(1, n, DType::kF32, 20), residual = random_matrix(m, n, DType::kF32, 21);
  const Matrix ones{1, n, DType::kF32, std::vector<double>(static_cast<size_t>(n), 1.0)};
  Matrix part[2], expected = ref_product(x, w);
  for (int64_t r = 0; r < 2; ++r) part[r] = ref_product(ref_columns(x, r * k / 2, k / 2), ref_columns(w, r * k / 2, k / 2));
  for (int64_t r = 0; r < m; ++r)
    for (int64_t c = 0; c < n; ++c) {
      expected.at(r, c) += bias.at(0, c) + residual.at(r, c);
      part[0].at(r, c) += bias.at(0, c) + residual.at(r, c);
    }
  for (int rank : {0, 1}) {
    OtherRank other(d, part[1 - rank]);
    OpContext ctx = d.context();
    ctx.comm = &other;
    ctx.rank = {rank, 2};
    const Tensor out = d.upload(residual), normed = d.make(DType::kF32, {m, n});
    LinearArgs args{.x = d.upload(ref_columns(x, rank * k / 2, k / 2)),
                    .weight = d.weight(ref_columns(w, rank * k / 2, k / 2)),
                    .bias = d.upload_vector(bias),
                    .residual = out,
                    .out = out};
    args.next_norm = {.weight = d.upload_vector(ones), .eps = 1e-6f, .out = normed};
    args.reduce = true;
    linear(ctx, args);
    expect_close(d.download(out), expected, 1e-6, [](int64_t, int64_t) { return 2e-5; });
    expect_close(d.download(normed), ref_norm(expected, NormKind::kRms, ones, nullptr, 1e-6), 1e-5,
                 [](int64_t, int64_t) { return 2e-5; });
  }
}

TEST_P(LinearTest, EpilogueAloneMatchesTheDefinition) {
  Device d = device();
  const int64_t m = 3, n = 37;
  const Matrix x = random_matrix(m, n, dtype(), 22), bias = random_matrix(1, n, DType::kF32, 23);
  const Matrix scale = random_matrix(1, n, DType::kF32, 24), residual = random_matrix(m, n, DType::kF32, 25);
  const Tensor out = d.upload(residual);
  epilogue(d.context(), {.x = d.upload(x), .bias = d.upload_vector(bias), .scale = d.upload_vector(scale), .residual = out, .out = out});
  Matrix expected = zeros(m, n, DType::kF32);
  for (int64_t r = 0; r < m; ++r)
    for (int64_t c = 0; c < n; ++c) expected.at(r, c) = residual.at(r, c) + scale.at(0, c) * (x.at(r, c) + bias.at(0, c));
  expect_close(d.download(out), expected, 1e-6, [](int64_t, int64_t) { return 1e-6; });
}

TEST_P(LinearTest, RefusesWhatDoesNotFit) {
  Device d = device();
  const Weight* w = d.weight(random_matrix(8, 16, dtype(), 26));
  const Tensor x = d.make(dtype(), {2, 16}), out = d.make(DType::kF32, {2, 8});
  EXPECT_THROW(linear(d.context(), {.x = d.make(dtype(), {2, 15}), .weight = w, .out = out}), CheckFailure);
  EXPECT_THROW(linear(d.context(), {.x = x, .weight = w, .out = d.make(DType::kF32, {2, 9})}), CheckFailure);
  EXPECT_THROW(linear(d.context(), {.x = x, .weight = w, .activation = Activation::kSiluMul, .out = out}), CheckFailure);
  EXPECT_THROW(linear(d.context(), {.x = x, .out = out}), CheckFailure);
  PreparedNorm norm{.weight = d.upload_vector(random_matrix(1, 8, DType::kF32, 28)), .rows = d.make(dtype(), {2, 9}), .squares = d.make(DType::kF32, {1, 8})};
  EXPECT_THROW(linear(d.context(), {.x = x, .prepared = &norm, .weight = w, .out = out}), CheckFailure);  // without the norm itself
  EXPECT_THROW(linear(d.context(), {.x = x, .weight = w, .out = out, .prepares = &norm}), CheckFailure);
  const Tensor weights = d.upload_vector(random_matrix(1, 15, DType::kF32, 27));
  EXPECT_THROW(linear(d.context(), {.x = x, .input_norm = {.weight = weights, .out = d.make(dtype(), {2, 16})}, .weight = w, .out = out}),
               CheckFailure);
}

TESSERA_OP_SUITE(LinearTest);

}  // namespace
}  // namespace tessera::testing
