#include "models/weight_loader.h"

#include <algorithm>

namespace tessera {

WeightLoader::WeightLoader(const Checkpoint& checkpoint, TensorNames names, Backend& backend, Allocator& allocator,
                           const LoadOptions& options)
    : checkpoint_(checkpoint),
      names_(std::move(names)),
      backend_(backend),
      allocator_(allocator),
      rank_(options.shard.rank),
      precision_(backend.sizing().precision(options.compute)) {
  if (options.progress)
    progress_ = [report = options.progress](size_t done, size_t total) { report(done, total); };
}

std::shared_ptr<const TensorReader> WeightLoader::open(const std::string& name, std::vector<int64_t> shape) {
  auto reader = checkpoint_.tensors().open(name, shape);
  if (!reader.ok()) throw CheckpointError(reader.status().with_context(checkpoint_.name()));
  int64_t elements = 1;
  for (int64_t dim : shape) elements *= dim;
  stored_elements_ += elements;
  used_.push_back(name);
  return std::move(*reader);
}

std::vector<RowRun> WeightLoader::open_runs(const std::vector<MatrixPart>& parts, bool vector) {
  std::vector<RowRun> runs;
  for (const MatrixPart& part : parts) {
    std::vector<int64_t> shape = part.stored_shape;
    if (shape.empty()) shape = vector ? std::vector<int64_t>{part.rows} : std::vector<int64_t>{part.rows, part.cols};
    const auto reader = open(part.name, std::move(shape));
    const Range cols = part.col_range.count > 0 ? part.col_range : Range{0, part.cols};
    const std::vector<Range> whole = {{0, part.rows}};
    for (const Range& rows : part.row_runs.empty() ? whole : part.row_runs)
      runs.push_back({reader, part.cols, rows, cols});
  }
  return runs;
}

WeightPtr WeightLoader::make(const LinearSpec& spec, const WeightSource& source, const std::string& name) {
  WeightPtr weight = backend_.make_weight(spec, &source, allocator_, line_, name);
  report(weight->bytes());
  return weight;
}

void WeightLoader::report(size_t bytes) {
  bytes_done_ += bytes;
  if (progress_) progress_(bytes_done_, 0);
}

WeightPtr WeightLoader::experts(const std::vector<std::vector<MatrixPart>>& experts, WeightUse use) {
  std::vector<std::vector<RowRun>> runs;
  runs.reserve(experts.size());
  for (const auto& parts : experts) runs.push_back(open_runs(parts, /*vector=*/false));
  LinearSpec spec{.dtype = precision_.weights, .use = use, .experts = static_cast<int64_t>(experts.size())};
  for (const RowRun& run : runs.front()) spec.rows += run.rows.count;
  spec.cols = runs.front().front().cols.count;
  return make(spec, GatheredRows(std::move(runs)), experts.front().front().name);
}

WeightPtr WeightLoader::matrix(const std::vector<MatrixPart>& parts, WeightUse use) { return experts({parts}, use); }

FoldedWeight WeightLoader::folded_matrix(const std::vector<MatrixPart>& parts, const std::vector<MatrixPart>& bias,
                                         const std::string& norm) {
  std::vector<RowRun> runs = open_runs(parts, /*vector=*/false);
  LinearSpec spec{.dtype = precision_.weights};
  for (const RowRun& run : runs) spec.rows += run.rows.count;
  spec.cols = runs.front().cols.count;
  const auto matrix = std::make_shared<GatheredRows>(std::vector<std::vector<RowRun>>{std::move(runs)});
  std::shared_ptr<const WeightSource> own_bias;
  if (!bias.empty()) own_bias = std::make_shared<GatheredVector>(open_runs(bias, /*vector=*/true));
  FoldedWeight folded;
  folded.weight = make(spec, FoldedRows(matrix, open(norm + ".weight", {spec.cols}), spec.cols), parts.front().name);
  folded.bias = make_vector_of(FoldedBias(matrix, open(norm + ".bias", {spec.cols}), own_bias, spec.rows, spec.cols), spec.rows,
                               parts.front().name + ", bias");
  return folded;
}

WeightPtr WeightLoader::padded_matrix(const std::string& name, int64_t rows, int64_t cols, Range row_range,
                                      WeightUse use) {
  const auto reader = open(name, {rows, cols});
  const int64_t begin = std::min(row_range.begin, rows);
  const int64_t present = std::min(row_range.count, rows - begin);
  std::vector<RowRun> runs = {{reader, cols, {begin, present}, {0, cols}},
                              {nullptr, cols, {0, row_range.count - present}, {0, cols}}};
  const LinearSpec spec{.rows = row_range.count, .cols = cols, .dtype = precision_.weights, .use = use};
  return make(spec, GatheredRows(std::vector<std::vector<RowRun>>{std::move(runs)}), name);
}

Vector WeightLoader::make_vector_of(const WeightSource& source, int64_t size, const std::string& name) {
  Vector vector{make_vector(backend_, &source, size, allocator_, line_, name), size};
  report(vector.memory.size());
  return vector;
}

Vector WeightLoader::vector(const std::vector<MatrixPart>& parts) {
  std::vector<RowRun> runs = open_runs(parts, /*vector=*/true);
  int64_t size = 0;
  for (const RowRun& run : runs) size += run.rows.count;
  return make_vector_of(GatheredVector(std::move(runs)), size, parts.front().name);
}

Vector WeightLoader::positions(const std::string& name) {
  const VisionConfig& v = config().vision;
  const int64_t stored_rows = 1 + v.table_side() * v.table_side();
  if (v.table_side() == v.side()) {
    const auto reader = open(name, {stored_rows, v.hidden});
    std::vector<RowRun> whole = {{reader, 1, {0, stored_rows * v.hidden}, {0, 1}}};
    return make_vector_of(GatheredVector(std::move(whole)), stored_rows * v.hidden, name);
  }
  const ResampledPositions source(open(name, {stored_rows, v.hidden}), v.table_side(), v.side(), v.hidden);
  return make_vector_of(source, v.tokens() * v.hidden, name);
}

}  // namespace tessera
