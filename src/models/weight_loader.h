#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "models/checkpoint.h"
#include "models/model.h"
#include "models/shards.h"
#include "models/tensor_names.h"
#include "models/weight_sources.h"
#include "ops/backend.h"

namespace tessera {

/// A tensor is absent or of a wrong form. Thrown by the loader, caught at load_model's door.
class CheckpointError : public std::runtime_error {
 public:
  explicit CheckpointError(const Status& status) : std::runtime_error(status.message()) {}
};

/// A small f32 vector or table in device memory; absent when default-constructed.
struct Vector {
  Buffer memory;
  int64_t size = 0;

  explicit operator bool() const { return size > 0; }
  Tensor tensor() const { return size > 0 ? memory.tensor(DType::kF32, {size}) : Tensor(); }
};

using WeightPtr = std::unique_ptr<Weight>;

struct FoldedWeight {
  WeightPtr weight;
  Vector bias;
};

/// Rows of one stored matrix [rows, cols] that go into a packed weight: the runs in their order, and a column range
/// (row-parallel weights take a part of each row).
struct MatrixPart {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<Range> row_runs;  ///< empty: all rows
  Range col_range;              ///< count 0: all columns
  std::vector<int64_t> stored_shape;  ///< where it is not [rows, cols]: a convolution's
};

/// Loads weights for one rank: turns names and row gathers into WeightSources and hands them to the backend. All checks
/// of names and shapes happen here, in counting mode, too. Throws CheckpointError, OutOfMemory, DeviceError.
class WeightLoader {
 public:
  WeightLoader(const Checkpoint& checkpoint, TensorNames names, Backend& backend, Allocator& allocator,
               const LoadOptions& options);

  const ModelConfig& config() const { return checkpoint_.config(); }
  const TensorNames& names() const { return names_; }
  Rank rank() const { return rank_; }
  const Precision& precision() const { return precision_; }
  bool contains(const std::string& name) const { return checkpoint_.tensors().contains(name); }

  /// Which account the next weights go to.
  void set_line(MemoryLine line) { line_ = line; }

  /// One weight from parts below one another.
  WeightPtr matrix(const std::vector<MatrixPart>& parts, WeightUse use = WeightUse::kLinear);
  /// Stacked matrices of the same shape, one list of parts each.
  WeightPtr experts(const std::vector<std::vector<MatrixPart>>& experts, WeightUse use);
  /// As matrix of one part whose rows are a padded shard: rows past the stored ones are zeros.
  WeightPtr padded_matrix(const std::string& name, int64_t rows, int64_t cols, Range row_range, WeightUse use);
  /// A weight that holds the LayerNorm before it, and its bias with the norm's in it: see LinearArgs::x_sums. `bias`: parts
  /// of its own bias, none for none.
  FoldedWeight folded_matrix(const std::vector<MatrixPart>& parts, const std::vector<MatrixPart>& bias, const std::string& norm);
  /// One vector from parts behind one another; parts have cols 1.
  Vector vector(const std::vector<MatrixPart>& parts);
  Vector vector(const std::string& name, int64_t size) { return vector({{.name = name, .rows = size, .cols = 1}}); }
  /// The position table for tiles of this configuration, resampled where it was trained for another side.
  Vector positions(const std::string& name);

  /// Elements of all stored tensors that were asked for, each once.
  int64_t stored_elements() const { return stored_elements_; }
  const std::vector<std::string>& used() const { return used_; }

 private:
  std::shared_ptr<const TensorReader> open(const std::string& name, std::vector<int64_t> shape);
  std::vector<RowRun> open_runs(const std::vector<MatrixPart>& parts, bool vector);
  WeightPtr make(const LinearSpec& spec, const WeightSource& source, const std::string& name);
  Vector make_vector_of(const WeightSource& source, int64_t size, const std::string& name);
  void report(size_t bytes);

  const Checkpoint& checkpoint_;
  TensorNames names_;
  Backend& backend_;
  Allocator& allocator_;
  Rank rank_;
  Precision precision_;
  std::function<void(size_t, size_t)> progress_;
  size_t bytes_done_ = 0;
  MemoryLine line_ = MemoryLine::kLanguageWeights;
  int64_t stored_elements_ = 0;
  std::vector<std::string> used_;
};

}  // namespace tessera
