#pragma once

#include <memory>
#include <vector>

#include "models/shards.h"
#include "models/tensor_store.h"
#include "ops/weight.h"

namespace tessera {

/// A run of rows, and a range of columns of them, of one stored matrix. An absent tensor stands for rows of zeros.
struct RowRun {
  std::shared_ptr<const TensorReader> tensor;
  int64_t stored_cols = 0;  ///< of the stored matrix
  Range rows;               ///< of the stored matrix
  Range cols;
};

/// A weight put together from rows of stored matrices: q | k | v, gate | up, a rank's heads, all experts of a layer.
/// Every packed form that the models want is such a gather, so that numbers go from the mapped file into a backend's
/// layout in one pass.
class GatheredRows final : public WeightSource {
 public:
  /// `experts[e]` are the runs of matrix e, in the order of its rows; all runs have the same number of columns.
  explicit GatheredRows(std::vector<std::vector<RowRun>> experts);
  void read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const override;

 private:
  struct Placed {
    int64_t first = 0;  ///< row of the weight where the run begins
    RowRun run;
  };
  std::vector<std::vector<Placed>> experts_;
  int64_t cols_ = 0;
};

/// A vector put together from runs of stored vectors, as the one row that make_vector reads. Runs have one column.
class GatheredVector final : public WeightSource {
 public:
  explicit GatheredVector(std::vector<RowRun> runs);
  void read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const override;

 private:
  int64_t size_ = 0;
  GatheredRows rows_;
};

/// A weight that holds the LayerNorm before it (LinearArgs::x_sums): each row of the matrix times the norm's weight, less the
/// row's mean. A row that sums to zero sees no mean of what it multiplies, so the mean needs no subtraction.
class FoldedRows final : public WeightSource {
 public:
  FoldedRows(std::shared_ptr<const WeightSource> matrix, std::shared_ptr<const TensorReader> norm_weight, int64_t cols)
      : matrix_(std::move(matrix)), norm_weight_(std::move(norm_weight)), cols_(cols) {}
  void read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const override;

 private:
  std::shared_ptr<const WeightSource> matrix_;
  std::shared_ptr<const TensorReader> norm_weight_;
  int64_t cols_;
};

/// The bias that goes with FoldedRows: bias + matrix * norm's bias, as one row.
class FoldedBias final : public WeightSource {
 public:
  /// `bias`: null for none.
  FoldedBias(std::shared_ptr<const WeightSource> matrix, std::shared_ptr<const TensorReader> norm_bias,
             std::shared_ptr<const WeightSource> bias, int64_t rows, int64_t cols)
      : matrix_(std::move(matrix)), norm_bias_(std::move(norm_bias)), bias_(std::move(bias)), rows_(rows), cols_(cols) {}
  void read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const override;

 private:
  std::shared_ptr<const WeightSource> matrix_;
  std::shared_ptr<const TensorReader> norm_bias_;
  std::shared_ptr<const WeightSource> bias_;
  int64_t rows_, cols_;
};

/// The tower's position table [1 + stored^2, hidden] resampled to another grid: row 0 (class token) as it is, the others
/// by the bicubic interpolation of the reference in float32 (a = -0.75, half-pixel centres, edges clamped).
class ResampledPositions final : public WeightSource {
 public:
  ResampledPositions(std::shared_ptr<const TensorReader> table, int64_t stored_side, int64_t side, int64_t hidden)
      : table_(std::move(table)), stored_side_(stored_side), side_(side), hidden_(hidden) {}
  void read(int64_t expert, int64_t begin, int64_t count, DType dtype, void* out) const override;

 private:
  std::shared_ptr<const TensorReader> table_;
  int64_t stored_side_, side_, hidden_;
};

}  // namespace tessera
