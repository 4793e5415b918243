#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "models/weight_sources.h"

namespace tessera::testing {
namespace {

class Values final : public TensorReader {
 public:
  explicit Values(std::vector<float> values) : values_(std::move(values)) {}
  void read(int64_t begin, int64_t count, DType dtype, void* out) const override {
    convert(values_.data() + begin, DType::kF32, out, dtype, static_cast<size_t>(count));
  }
  const std::vector<float>& all() const { return values_; }

 private:
  std::vector<float> values_;
};

std::shared_ptr<Values> random_values(int64_t count, unsigned seed, float mean, float deviation) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(mean, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(engine);
  return std::make_shared<Values>(std::move(values));
}

// A product of x's rows over their deviation with the folded weight is the product of their LayerNorm with the weight itself.
TEST(FoldedNorm, IsTheNormAndTheProduct) {
  constexpr int64_t kRows = 150, kCols = 96;
  const auto matrix = random_values(kRows * kCols, 1, 0.1f, 1.0f), weight = random_values(kCols, 2, 1.0f, 0.5f);
  const auto norm_bias = random_values(kCols, 3, 0.2f, 0.5f), bias = random_values(kRows, 4, 0.0f, 1.0f), x = random_values(kCols, 5, 3.0f, 0.7f);
  const std::vector<RowRun> runs = {{matrix, kCols, {0, kRows}, {0, kCols}}}, bias_runs = {{bias, 1, {0, kRows}, {0, 1}}};
  const auto rows = std::make_shared<GatheredRows>(std::vector<std::vector<RowRun>>{runs});
  const FoldedRows folded(rows, weight, kCols);
  for (const bool with_bias : {true, false}) {
    const FoldedBias folded_bias(rows, norm_bias, with_bias ? std::make_shared<GatheredVector>(bias_runs) : nullptr, kRows, kCols);
    std::vector<float> w(kRows * kCols), b(kRows);
    folded.read(0, 0, 70, DType::kF32, w.data());
    folded.read(0, 70, kRows - 70, DType::kF32, w.data() + 70 * kCols);
    folded_bias.read(0, 0, 1, DType::kF32, b.data());
    double mean = 0, variance = 0;
    for (float v : x->all()) mean += v / static_cast<double>(kCols);
    for (float v : x->all()) variance += (v - mean) * (v - mean) / static_cast<double>(kCols);
    for (size_t r = 0; r < kRows; ++r) {
      double expected = with_bias ? bias->all()[r] : 0, got = 0, sum = 0;
      for (size_t c = 0; c < kCols; ++c) {
        const double normed = (x->all()[c] - mean) / std::sqrt(variance) * weight->all()[c] + norm_bias->all()[c];
        expected += normed * matrix->all()[r * kCols + c];
        got += static_cast<double>(x->all()[c]) * w[r * kCols + c];
        sum += w[r * kCols + c];
      }
      EXPECT_NEAR(got / std::sqrt(variance) + b[r], expected, 1e-4) << r;
      EXPECT_NEAR(sum, 0, 1e-4) << "a row that sums to zero sees no mean";
    }
  }
}

}  // namespace
}  // namespace tessera::testing
