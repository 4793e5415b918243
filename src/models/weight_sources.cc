#include "models/weight_sources.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace tessera {
namespace {

void read_run(const RowRun& run, int64_t first, int64_t count, DType dtype, char* out) {
  const size_t row_bytes = static_cast<size_t>(run.cols.count) * size_of(dtype);
  if (!run.tensor) {
    std::memset(out, 0, static_cast<size_t>(count) * row_bytes);  // zero bits are zero in every floating dtype
    return;
  }
  const int64_t row = run.rows.begin + first;
  if (run.cols.count == run.stored_cols) {
    run.tensor->read(row * run.stored_cols, count * run.stored_cols, dtype, out);
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    run.tensor->read((row + i) * run.stored_cols + run.cols.begin, run.cols.count, dtype,
                     out + static_cast<size_t>(i) * row_bytes);
}

int64_t total_rows(const std::vector<RowRun>& runs) {
  int64_t rows = 0;
  for (const RowRun& run : runs) rows += run.rows.count;
  return rows;
}

// Weights of the four neighbours of a sample `t` past the second one; the cubic convolution kernel with a = -0.75.
std::array<float, 4> cubic_weights(float t) {
  constexpr float a = -0.75f;
  const auto inner = [](float x) { return ((a + 2) * x - (a + 3)) * x * x + 1; };
  const auto outer = [](float x) { return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a; };
  return {outer(t + 1), inner(t), inner(1 - t), outer(2 - t)};
}

struct Taps {
  std::array<int64_t, 4> index;
  std::array<float, 4> weight;
};

Taps taps_of(int64_t out, int64_t in_size, int64_t out_size) {
  const float scale = static_cast<float>(in_size) / static_cast<float>(out_size);
  const float centre = scale * (static_cast<float>(out) + 0.5f) - 0.5f;
  const float floor = std::floor(centre);
  Taps taps{{}, cubic_weights(centre - floor)};
  for (int64_t i = 0; i < 4; ++i)
    taps.index[static_cast<size_t>(i)] = std::clamp<int64_t>(static_cast<int64_t>(floor) - 1 + i, 0, in_size - 1);
  return taps;
}

}  // namespace

GatheredRows::GatheredRows(std::vector<std::vector<RowRun>> experts) {
  for (std::vector<RowRun>& runs : experts) {
    std::vector<Placed> placed;
    int64_t first = 0;
    for (RowRun& run : runs) {
      if (cols_ == 0) cols_ = run.cols.count;
      TESSERA_CHECK(run.cols.count == cols_, "gathered rows of different widths");
      const int64_t count = run.rows.count;
      if (count > 0) placed.push_back({first, std::move(run)});
      first += count;
    }
    experts_.push_back(std::move(placed));
  }
}

void GatheredRows::read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const {
  const auto& runs = experts_.at(static_cast<size_t>(expert));
  auto at = std::upper_bound(runs.begin(), runs.end(), begin,
                             [](int64_t row, const Placed& placed) { return row < placed.first; });
  TESSERA_CHECK(at != runs.begin() && begin >= 0, "gathered rows: row " + std::to_string(begin));
  --at;
  char* to = static_cast<char*>(out);
  while (count > 0) {
    TESSERA_CHECK(at != runs.end(), "gathered rows: read past the end");
    const int64_t skip = begin - at->first;
    const int64_t n = std::min(count, at->run.rows.count - skip);
    read_run(at->run, skip, n, dtype, to);
    to += static_cast<size_t>(n * cols_) * size_of(dtype);
    begin += n;
    count -= n;
    ++at;
  }
}

GatheredVector::GatheredVector(std::vector<RowRun> runs)
    : size_(total_rows(runs)), rows_(std::vector<std::vector<RowRun>>{std::move(runs)}) {}

void GatheredVector::read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const {
  TESSERA_CHECK(expert == 0 && begin == 0 && count == 1, "a vector is one row");
  rows_.read(0, 0, size_, dtype, out);
}

void FoldedRows::read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const {
  std::vector<float> norm(static_cast<size_t>(cols_)), rows(static_cast<size_t>(count * cols_));
  norm_weight_->read(0, cols_, DType::kF32, norm.data());
  matrix_->read(expert, begin, count, DType::kF32, rows.data());
  for (int64_t r = 0; r < count; ++r) {
    float* row = rows.data() + r * cols_;
    double sum = 0;
    for (int64_t c = 0; c < cols_; ++c) sum += row[c] *= norm[static_cast<size_t>(c)];
    const auto mean = static_cast<float>(sum / static_cast<double>(cols_));
    for (int64_t c = 0; c < cols_; ++c) row[c] -= mean;
  }
  convert(rows.data(), DType::kF32, out, dtype, rows.size());
}

void FoldedBias::read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const {
  TESSERA_CHECK(expert == 0 && begin == 0 && count == 1, "a vector is one row");
  constexpr int64_t kPiece = 64;  // rows at a time
  std::vector<float> norm(static_cast<size_t>(cols_)), rows(static_cast<size_t>(kPiece * cols_)), result(static_cast<size_t>(rows_), 0.0f);
  norm_bias_->read(0, cols_, DType::kF32, norm.data());
  if (bias_) bias_->read(0, 0, 1, DType::kF32, result.data());
  for (int64_t r = 0; r < rows_; r += kPiece) {
    const int64_t n = std::min(kPiece, rows_ - r);
    matrix_->read(0, r, n, DType::kF32, rows.data());
    for (int64_t i = 0; i < n; ++i) {
      const float* row = rows.data() + i * cols_;
      double sum = 0;
      for (int64_t c = 0; c < cols_; ++c) sum += static_cast<double>(row[c]) * static_cast<double>(norm[static_cast<size_t>(c)]);
      result[static_cast<size_t>(r + i)] += static_cast<float>(sum);
    }
  }
  convert(result.data(), DType::kF32, out, dtype, result.size());
}

void ResampledPositions::read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const {
  TESSERA_CHECK(expert == 0 && begin == 0 && count == 1, "the position table is read whole");
  const int64_t stored_rows = 1 + stored_side_ * stored_side_;
  std::vector<float> table(static_cast<size_t>(stored_rows * hidden_));
  table_->read(0, stored_rows * hidden_, DType::kF32, table.data());
  std::vector<float> result(static_cast<size_t>((1 + side_ * side_) * hidden_), 0.0f);
  std::copy_n(table.begin(), hidden_, result.begin());
  for (int64_t y = 0; y < side_; ++y) {
    const Taps down = taps_of(y, stored_side_, side_);
    for (int64_t x = 0; x < side_; ++x) {
      const Taps across = taps_of(x, stored_side_, side_);
      float* to = result.data() + (1 + y * side_ + x) * hidden_;
      for (size_t j = 0; j < 4; ++j)
        for (size_t i = 0; i < 4; ++i) {
          const float weight = down.weight[j] * across.weight[i];
          const float* from = table.data() + (1 + down.index[j] * stored_side_ + across.index[i]) * hidden_;
          for (int64_t h = 0; h < hidden_; ++h) to[h] += weight * from[h];
        }
    }
  }
  convert(result.data(), DType::kF32, out, dtype, result.size());
}

}  // namespace tessera
