#include "ops/begin_step.h"

#include <cmath>

#include "tests/ops/reference.h"

namespace tessera::testing {
namespace {

class BeginStepTest : public OpTest {
 protected:
  static constexpr int64_t kTable = 37, kImages = 3, kSampled = 4, kHeadDim = 64;

  /// Of all kinds: tokens, tokens of the step before, rows of images.
  struct Rows {
    std::vector<int32_t> ids, image_index;
    Matrix expected;
  };
  Rows rows(int64_t tokens, const Matrix& table, const Matrix& images, const std::vector<int32_t>& sampled) {
    Rows r{.ids = {}, .image_index = {}, .expected = zeros(tokens, table.cols, DType::kF32)};
    for (int64_t t = 0; t < tokens; ++t) {
      const bool image = t % 5 == 3, before = t % 3 == 1;
      r.image_index.push_back(image ? static_cast<int32_t>(t % kImages) : -1);
      r.ids.push_back(before ? static_cast<int32_t>(-1 - t % kSampled) : static_cast<int32_t>(t * 7 % kTable));
      const int64_t id = before ? sampled[static_cast<size_t>(t % kSampled)] : t * 7 % kTable;
      for (int64_t c = 0; c < table.cols; ++c) r.expected.at(t, c) = image ? images.at(t % kImages, c) : table.at(id, c);
    }
    return r;
  }
};

TEST_P(BeginStepTest, IsItsParts) {
  Device d = device();
  const DeviceLimits& limits = d.backend().limits();
  const bool prepares = limits.wgmma && limits.shared_memory_optin >= (200 << 10) && dtype() == DType::kBF16;
  const RopeParams rope{.head_dim = kHeadDim, .base = 10000};
  const std::vector<int32_t> sampled = {36, 0, 11, 5};
  const int64_t width = 72;
  const float eps = 0.5f;
  for (int64_t n : {26, 328, 896, 3584})
    for (int64_t tokens : {1, 9, 50, 64, 65}) {
      if ((emulated() || on_cpu()) && (tokens > 9 || n > 900)) continue;  // who has only the parts is asked for no more than the contract
      SCOPED_TRACE(std::to_string(tokens) + " tokens of " + std::to_string(n));
      const Matrix table = random_matrix(kTable, n, dtype(), 1), images = random_matrix(kImages, n, dtype(), 2);
      const Rows r = rows(tokens, table, images, sampled);
      std::vector<int32_t> positions, lengths;
      for (int64_t t = 0; t < tokens; ++t) {
        positions.push_back(static_cast<int32_t>(t * 13));
        lengths.push_back(static_cast<int32_t>(t * 13 + 1));
      }
      const Matrix norm_weight = random_matrix(1, n, DType::kF32, 3, 0.5, 1.0);
      const Tensor x = d.make(DType::kF32, {tokens, n}), angles = d.make(DType::kF32, {tokens, kHeadDim}), normed = d.make(dtype(), {tokens, n});
      PreparedNorm norm{.weight = d.upload_vector(norm_weight), .rows = normed, .squares = d.make(DType::kF32, {kPreparedRows, kPreparedParts}), .parts = 1};
      begin_step(d.context(), {.embed = {.ids = d.upload_ints(r.ids),
                                         .sampled_ids = d.upload_ints(sampled),
                                         .table = d.weight(table, WeightUse::kEmbedding),
                                         .image_rows = d.upload(images),
                                         .image_index = d.upload_ints(r.image_index),
                                         .out = x},
                               .angles = {.params = &rope, .positions = d.upload_ints(positions), .rope_lengths = d.upload_ints(lengths), .out = angles},
                               .prepares = &norm});
      EXPECT_EQ(norm.parts > 0, prepares && tokens > 8 && tokens <= 64 && n % 4 == 0);

      const Matrix w = random_matrix(width, n, dtype(), 4);
      const Tensor sums = d.make(DType::kF32, {tokens, width});
      linear(d.context(), {.x = x, .input_norm = {.weight = norm.weight, .eps = eps, .out = normed}, .prepared = &norm, .weight = d.weight(w), .out = sums});
      expect_close(d.download(x), r.expected, 0, [](int64_t, int64_t) { return 0; });
      const Matrix expected = ref_norm(r.expected, NormKind::kRms, norm_weight, nullptr, eps), magnitude = ref_product_magnitude(expected, w);
      const double roundoff = dtype() == DType::kF32 ? 0x1p-20 : unit_roundoff(dtype()), rounding = 6 * roundoff / std::sqrt(static_cast<double>(n));
      expect_close(d.download(sums), ref_product(expected, w), 0,
                   [&](int64_t i, int64_t c) { return (rounding + 0x1p-18) * magnitude.at(i, c); });

      const Matrix got = d.download(angles);
      for (int64_t t = 0; t < tokens; ++t) {
        const std::vector<float> f = rope_inverse_frequencies(rope, lengths[static_cast<size_t>(t)]);
        for (int64_t i = 0; i < kHeadDim / 2; ++i) {
          const float angle = static_cast<float>(positions[static_cast<size_t>(t)]) * f[static_cast<size_t>(i)];
          EXPECT_NEAR(got.at(t, i), std::cos(static_cast<double>(angle)), 4e-7);
          EXPECT_NEAR(got.at(t, i + kHeadDim / 2), std::sin(static_cast<double>(angle)), 4e-7);
        }
      }
    }
}

TEST_P(BeginStepTest, RefusesAnglesOfOtherTokens) {
  Device d = device();
  const RopeParams rope{.head_dim = 8};
  const EmbedArgs rows{.ids = d.upload_ints({0, 1}), .table = d.weight(random_matrix(2, 8, dtype(), 1), WeightUse::kEmbedding),
                       .image_index = d.upload_ints({-1, -1}), .out = d.make(DType::kF32, {2, 8})};
  EXPECT_THROW(begin_step(d.context(), {.embed = rows, .angles = {.params = &rope, .positions = d.upload_ints({0}), .rope_lengths = d.upload_ints({1}), .out = d.make(DType::kF32, {1, 8})}}),
               CheckFailure);
}

TESSERA_OP_SUITE(BeginStepTest);

}  // namespace
}  // namespace tessera::testing
