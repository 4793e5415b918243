#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/ops/reference.h"

namespace tessera::testing {
namespace {

TEST(Uniform, IsTheKnownGenerator) {
  // Philox 4x32-10 of a zero key and counter begins 6627e8d5 (Random123's known answers).
  EXPECT_EQ(uniform(0, 0), static_cast<float>(0x6627e8d5u >> 8) * 0x1p-24f);
  EXPECT_EQ(uniform(7, 3), uniform(7, 3));
  EXPECT_NE(uniform(7, 3), uniform(7, 4));
  double sum = 0;
  for (uint64_t i = 0; i < 10000; ++i) {
    const float u = uniform(42, i);
    ASSERT_TRUE(u >= 0 && u < 1);
    sum += u;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.015);  // five standard deviations
}

class SampleTest : public OpTest {
 protected:
  struct Result {
    std::vector<int32_t> ids, top_ids;
    Matrix logprobs, top_logprobs;
  };

  static Result run(Device& d, const Matrix& logits, std::vector<SamplingRow> rows, int64_t valid, std::vector<LogitEdit> edits = {}, std::vector<int32_t> masks = {}) {
    const int64_t words = (logits.cols + 31) / 32;
    // Rows begin at multiples of 16 bytes, as a model's do, and what lies between them is nobody's.
    SampleArgs args{.logits = d.upload_strided(logits, 4, 4 + (4 - logits.cols % 4) % 4), .valid_ids = valid, .params = d.upload_bytes(rows.data(), logits.rows, sizeof(SamplingRow))};
    if (!edits.empty()) args.edits = d.upload_bytes(edits.data(), static_cast<int64_t>(edits.size()), sizeof(LogitEdit));
    if (!masks.empty()) {
      args.masks = d.upload_ints(masks, static_cast<int64_t>(masks.size()) / words, words);
      args.masks = Tensor(args.masks.data, DType::kI32, {static_cast<int64_t>(masks.size()) / words, words});
    }
    for (const SamplingRow& row : rows) {
      args.max_top_logprobs = std::max(args.max_top_logprobs, static_cast<int>(row.top_logprobs));
      args.all_greedy = args.all_greedy && row.temperature == 0;
    }
    args.workspace = d.make(DType::kU8, {static_cast<int64_t>(d.backend().sizing().sample_workspace_bytes(logits.rows, logits.cols))});
    args.out_ids = d.make(DType::kI32, {logits.rows});
    args.out_logprobs = d.make(DType::kF32, {logits.rows});
    args.out_top_ids = d.make(DType::kI32, {logits.rows, kMaxTopLogprobs});
    args.out_top_logprobs = d.make(DType::kF32, {logits.rows, kMaxTopLogprobs});
    sample(d.context(), args);
    return {d.download_ints(args.out_ids), d.download_ints(args.out_top_ids), d.download(args.out_logprobs), d.download(args.out_top_logprobs)};
  }

  static double logprob(const Matrix& logits, int64_t row, int64_t id) {
    double sum = 0;
    for (int64_t c = 0; c < logits.cols; ++c) sum += std::exp(logits.at(row, c));
    return logits.at(row, id) - std::log(sum);
  }

  /// The distribution that sampling draws from, in drawing order.
  static std::vector<std::pair<int32_t, double>> distribution(const Matrix& logits, int64_t row, const SamplingRow& p, int64_t valid) {
    std::vector<std::pair<int32_t, double>> d;
    double largest = -1e300;
    for (int64_t c = 0; c < valid; ++c) largest = std::max(largest, logits.at(row, c));
    for (int64_t c = 0; c < valid; ++c) d.emplace_back(static_cast<int32_t>(c), std::exp((logits.at(row, c) - largest) / p.temperature));
    std::stable_sort(d.begin(), d.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    if (p.top_k > 0 && p.top_k < static_cast<int32_t>(d.size())) d.resize(static_cast<size_t>(p.top_k));
    double total = 0, sum = 0;
    for (const auto& [id, v] : d) total += v;
    size_t kept = 0;
    while (kept < d.size() && (kept == 0 || (sum < p.top_p * total && d[kept].second >= p.min_p))) sum += d[kept++].second;
    d.resize(kept);
    for (auto& [id, v] : d) v /= sum;
    return d;
  }
};

TEST_P(SampleTest, GreedyTakesTheLargestAndTheLowestOfEquals) {
  Device d = device();
  Matrix logits = random_matrix(4, 1003, DType::kF32, 1);
  logits.at(0, 700) = logits.at(0, 300) = 9;
  logits.at(1, 1002) = 50;  // beyond the tokenizer
  logits.at(1, 999) = 8;
  logits.at(2, 0) = 8;
  const Result r = run(d, logits, std::vector<SamplingRow>(4, SamplingRow{.top_logprobs = 3}), 1000);
  EXPECT_EQ(r.ids[0], 300);
  EXPECT_EQ(r.ids[1], 999);
  EXPECT_EQ(r.ids[2], 0);
  EXPECT_EQ(r.top_ids[0], 300);
  EXPECT_EQ(r.top_ids[1], 700);
  for (int64_t row = 0; row < 4; ++row) {
    EXPECT_NEAR(r.logprobs.at(row, 0), logprob(logits, row, r.ids[static_cast<size_t>(row)]), 2e-5);
    for (int64_t i = 0; i < 3; ++i) {
      const int32_t id = r.top_ids[static_cast<size_t>(row * kMaxTopLogprobs + i)];
      ASSERT_LT(id, 1000);
      EXPECT_NEAR(r.top_logprobs.at(row, i), logprob(logits, row, id), 2e-5);
    }
  }
}

// Nothing but the choice is asked for: a backend may share a row among many threads.
TEST_P(SampleTest, GreedyAloneChoosesAndReportsTheSame) {
  Device d = device();
  for (const auto& [rows, vocab] : std::vector<std::pair<int64_t, int64_t>>{{1, 20011}, {3, 7}, {40, 501}, {64, 30003}}) {
    Matrix logits = random_matrix(rows, vocab, DType::kF32, 5);
    logits.at(0, vocab - 1) = 50;  // beyond the tokenizer
    logits.at(0, vocab / 2) = logits.at(0, vocab / 3) = 9;
    const Result r = run(d, logits, std::vector<SamplingRow>(static_cast<size_t>(rows)), vocab - 1);
    EXPECT_EQ(r.ids[0], vocab / 3);
    for (int64_t row = 0; row < rows; ++row) {
      int64_t best = 0;
      for (int64_t c = 1; c < vocab - 1; ++c) best = logits.at(row, c) > logits.at(row, best) ? c : best;
      EXPECT_EQ(r.ids[static_cast<size_t>(row)], best);
      EXPECT_NEAR(r.logprobs.at(row, 0), logprob(logits, row, best), 2e-5);
    }
  }
}

/// A model that overflows: what it says is an id all the same, since the next step looks it up.
TEST_P(SampleTest, WhereNoLogitIsANumberAnIdIsChosen) {
  Device d = device();
  Matrix logits = random_matrix(2, 1003, DType::kF32, 4);
  for (int64_t c = 0; c < logits.cols; ++c) logits.at(0, c) = std::numeric_limits<double>::quiet_NaN();
  const Result r = run(d, logits, std::vector<SamplingRow>(2), 1000);
  for (const int32_t id : r.ids) EXPECT_TRUE(id >= 0 && id < 1000) << id;
}

TEST_P(SampleTest, EditsAndMasksComeFirstAndLogprobsStayUnedited) {
  Device d = device();
  Matrix logits = random_matrix(3, 100, DType::kF32, 2);
  logits.at(0, 5) = 9, logits.at(0, 6) = 6;
  logits.at(1, 5) = 9, logits.at(1, 6) = 8.5;
  logits.at(2, 50) = 9, logits.at(2, 51) = 8;
  std::vector<int32_t> mask(4, -1);
  mask[50 / 32] &= ~(1 << (50 % 32));
  const Result r = run(d, logits, {{.edits_begin = 0, .edits_end = 1}, {.edits_begin = 1, .edits_end = 2}, {.mask_row = 0}}, 100,
                       {{.token = 5, .repetition = 2.0f}, {.token = 5, .subtract = 1.0f}}, mask);
  EXPECT_EQ(r.ids, (std::vector<int32_t>{6, 6, 51}));
  EXPECT_NEAR(r.logprobs.at(0, 0), logprob(logits, 0, 6), 2e-5);
  EXPECT_NEAR(r.logprobs.at(2, 0), logprob(logits, 2, 51), 2e-5);
}

TEST_P(SampleTest, DrawsByTheInverseCumulativeDistribution) {
  Device d = device();
  const std::vector<SamplingRow> kinds = {{.temperature = 1},
                                          {.temperature = 0.5f, .top_p = 0.7f},
                                          {.temperature = 2, .top_k = 5},
                                          {.temperature = 1.5f, .top_p = 0.9f, .min_p = 0.1f, .top_k = 40},
                                          {.temperature = 1, .min_p = 0.3f},
                                          {.temperature = 1, .top_p = 1e-6f}};
  const int64_t vocab = 3000, valid = 2990, draws = 40;
  for (SamplingRow kind : kinds) {
    const Matrix logits = random_matrix(1, vocab, DType::kF32, 3, 2.0);
    Matrix many = zeros(draws, vocab, DType::kF32);
    std::vector<SamplingRow> rows;
    for (int64_t i = 0; i < draws; ++i) {
      for (int64_t c = 0; c < vocab; ++c) many.at(i, c) = logits.at(0, c);
      kind.seed = 11;
      kind.draw = static_cast<uint64_t>(i);
      rows.push_back(kind);
    }
    const auto want = distribution(logits, 0, kind, valid);
    const Result r = run(d, many, rows, valid);
    for (int64_t i = 0; i < draws; ++i) {
      // The id's interval of the cumulative distribution holds the uniform number, up to the sums' rounding.
      const double u = uniform(11, static_cast<uint64_t>(i));
      double begin = 0;
      bool found = false;
      for (const auto& [id, p] : want) {
        if (id == r.ids[static_cast<size_t>(i)]) {
          found = true;
          EXPECT_TRUE(begin - 1e-5 <= u && u <= begin + p + 1e-5) << "draw " << i << ": " << u << " in [" << begin << ", " << begin + p << "]";
        }
        begin += p;
      }
      EXPECT_TRUE(found) << "id " << r.ids[static_cast<size_t>(i)] << " was cut";
    }
  }
}

TEST_P(SampleTest, ARowDoesNotDependOnItsCompany) {
  Device d = device(3);
  const Matrix logits = random_matrix(20, 500, DType::kF32, 5, 2.0);
  std::vector<SamplingRow> rows;
  for (uint64_t i = 0; i < 20; ++i) rows.push_back({.temperature = i % 3 ? 1.0f : 0.0f, .top_p = 0.95f, .seed = i});
  const Result all = run(d, logits, rows, 500);
  for (int64_t i : {0, 7, 19}) {
    const Result one = run(d, ref_rows(logits, i, 1), {rows[static_cast<size_t>(i)]}, 500);
    EXPECT_EQ(one.ids[0], all.ids[static_cast<size_t>(i)]);
    EXPECT_EQ(one.logprobs.at(0, 0), all.logprobs.at(i, 0));
  }
}

TESSERA_OP_SUITE_F32(SampleTest);

}  // namespace
}  // namespace tessera::testing
