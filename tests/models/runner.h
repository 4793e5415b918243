#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "backends/registry.h"
#include "models/checkpoint.h"
#include "models/model.h"

namespace tessera::testing {

/// The CPU, or the device that TESSERA_TEST_DEVICE names ("cuda"), with TESSERA_TEST_SHARED_MEMORY bytes a block imposed.
inline std::unique_ptr<Backend> open_cpu(const std::string& isa = "auto") {
  BackendOptions options{.device = "cpu", .threads = 1, .isa = isa};
  if (const char* device = std::getenv("TESSERA_TEST_DEVICE")) options.device = device;
  if (const char* bytes = std::getenv("TESSERA_TEST_SHARED_MEMORY"))
    options.limits = {{"shared_memory_per_block", std::stoll(bytes)}};
  auto backend = open_backend(options);
  if (!backend.ok()) throw std::runtime_error(backend.status().message());
  return std::move(*backend);
}

/// A tensor brought to the host as f32, row strides taken out.
struct HostTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
  int64_t rows() const { return shape.at(0); }
  int64_t cols() const { return static_cast<int64_t>(values.size()) / std::max<int64_t>(rows(), 1); }
  const float* row(int64_t i) const { return values.data() + i * cols(); }
};

inline HostTensor to_host(Backend& backend, const Tensor& tensor) {
  HostTensor host;
  for (int i = 0; i < tensor.rank; ++i) host.shape.push_back(tensor.dims[static_cast<size_t>(i)]);
  host.values.resize(static_cast<size_t>(tensor.elements()));
  const int64_t cols = tensor.row_elements();
  std::vector<char> row(static_cast<size_t>(cols) * size_of(tensor.dtype));
  for (int64_t i = 0; i < tensor.rows(); ++i) {
    Tensor one = tensor.slice(i, 1);
    one.row_stride = cols;
    backend.download(one, row.data());
    backend.synchronize();
    convert(row.data(), tensor.dtype, host.values.data() + i * cols, DType::kF32, static_cast<size_t>(cols));
  }
  return host;
}

/// One sequence through a model: the smallest engine there is.
class Runner {
 public:
  struct Options {
    DType compute = DType::kF32;
    int64_t max_tokens = 1024;  ///< prompt and answer
    int64_t max_tiles = 8;
    int64_t vision_batch = 4;
    int64_t logit_rows = 1;  ///< of a step, at most
    ModelShard shard;
    Communicator* comm = nullptr;
  };

  Runner(Backend& backend, const Checkpoint& checkpoint, Options options)
      : backend_(backend), options_(std::move(options)), config_(checkpoint.config()) {
    auto loaded = load_model(checkpoint, backend, backend.allocator(),
                             {.compute = options_.compute, .shard = options_.shard, .progress = {}});
    if (!loaded.ok()) throw std::runtime_error(loaded.status().message());
    model_ = std::move(*loaded);
    model_->reserve({.vision_tiles = options_.vision_batch,
                     .step_tokens = options_.max_tokens,
                     .step_sequences = 1,
                     .logit_rows = options_.logit_rows,
                     .max_kv = options_.max_tokens},
                    backend.allocator());
    const int block = backend.sizing().kv_block_size();
    kv_.layout = model_->kv_layout(block);
    kv_.blocks = (options_.max_tokens + block - 1) / block;
    kv_.layer_stride = static_cast<size_t>(kv_.blocks) * kv_.layout.block_bytes();
    kv_memory_ = backend.allocator().allocate(kv_.layer_stride * static_cast<size_t>(model_->layers()),
                                              MemoryLine::kKvCache, "test kv");
    kv_.base = kv_memory_.data();
    const int64_t rows = options_.max_tiles * config_.tokens_per_tile();
    image_memory_ = backend.allocator().allocate(model_->precision().activation, {rows, config_.language.hidden},
                                                 MemoryLine::kEmbeddingCache, "test images");
    images_ = image_memory_.tensor(model_->precision().activation, {rows, config_.language.hidden});
    backend.fill_zero(images_);
  }

  Model& model() { return *model_; }
  Backend& backend() { return backend_; }
  OpContext context() {
    OpContext ctx = backend_.context();
    ctx.comm = options_.comm;
    ctx.rank = options_.shard.rank;
    return ctx;
  }

  /// Encodes tiles u8 [count, 3, side, side] into the image rows, `vision_batch` at a time.
  void encode(const std::vector<uint8_t>& tiles) {
    const int64_t side = config_.vision.image_size;
    const int64_t tile_bytes = 3 * side * side;
    const int64_t count = static_cast<int64_t>(tiles.size()) / tile_bytes;
    const int64_t per_tile = config_.tokens_per_tile();
    for (int64_t first = 0; first < count; first += options_.vision_batch) {
      const int64_t n = std::min(options_.vision_batch, count - first);
      std::vector<int32_t> destination(static_cast<size_t>(n * per_tile));
      for (size_t i = 0; i < destination.size(); ++i)
        destination[i] = static_cast<int32_t>(first * per_tile + static_cast<int64_t>(i));
      const Tensor where = upload("destination", destination);
      const Tensor pixels = device("tiles", DType::kU8, {n, 3, side, side});
      backend_.upload(tiles.data() + first * tile_bytes, pixels);
      model_->vision_begin(context(), pixels);
      for (int64_t layer = 0; layer < model_->vision_layers(); ++layer) model_->vision_run(context(), layer, 1);
      model_->vision_finish(context(), where, images_);
      backend_.synchronize();
    }
  }

  /// Image rows as the language model sees them.
  HostTensor image_rows(int64_t count) { return to_host(backend_, images_.slice(0, count)); }

  /// Runs tokens [past, past + ids.size()) of the sequence and returns the last row's logits. `image_id` stands for
  /// the next image row. `rope_length` is the whole prompt's length, or 0 for position + 1.
  std::vector<float> step(const std::vector<int32_t>& ids, int32_t image_id, int64_t rope_length = 0) {
    return step_for(ids, {static_cast<int32_t>(ids.size()) - 1}, image_id, rope_length);
  }
  /// The same with the logits of the rows `wanted`, one after the other.
  std::vector<float> step_for(const std::vector<int32_t>& ids, const std::vector<int32_t>& wanted, int32_t image_id = -1,
                              int64_t rope_length = 0) {
    const auto n = static_cast<int64_t>(ids.size());
    std::vector<int32_t> positions, lengths, slots, index;
    for (int64_t i = 0; i < n; ++i) {
      const auto position = static_cast<int32_t>(past_ + i);
      positions.push_back(position);
      lengths.push_back(rope_length > 0 ? static_cast<int32_t>(rope_length) : position + 1);
      slots.push_back(position);
      index.push_back(ids[static_cast<size_t>(i)] == image_id ? next_image_row_++ : -1);
    }
    std::vector<int32_t> table;
    for (int64_t b = 0; b < kv_.blocks; ++b) table.push_back(static_cast<int32_t>(b));
    const std::vector<int32_t> offsets = {0, static_cast<int32_t>(n)};
    const std::vector<int32_t> kv_lengths = {static_cast<int32_t>(past_ + n)};
    StepInput input{.shape = {.tokens = n,
                              .sequences = 1,
                              .decodes = n == 1 ? 1 : 0,
                              .max_query = n,
                              .max_kv = past_ + n,
                              .logit_rows = static_cast<int64_t>(wanted.size())},
                    .token_ids = upload("ids", ids),
                    .positions = upload("positions", positions),
                    .rope_lengths = upload("lengths", lengths),
                    .slots = upload("slots", slots),
                    .image_index = upload("index", index),
                    .query_offsets = upload("offsets", offsets),
                    .kv_lengths = upload("kv_lengths", kv_lengths),
                    .block_tables = upload("table", table),
                    .logit_rows = upload("wanted", wanted),
                    .image_rows = images_};
    input.block_tables = Tensor(input.block_tables.data, DType::kI32, {1, kv_.blocks});
    const Tensor logits = model_->forward(context(), input, kv_);
    past_ += n;
    if (wanted.empty()) return {};
    return to_host(backend_, logits).values;
  }

  void reset() { past_ = 0, next_image_row_ = 0; }

  struct Generation {
    std::vector<int32_t> ids;
    std::vector<std::vector<float>> logits;  ///< of each step
  };

  /// The prompt in chunks of `chunk`, then greedy steps until `eos` or `max_new`.
  Generation greedy(const std::vector<int32_t>& prompt, int32_t image_id, const std::vector<int32_t>& eos,
                    int64_t max_new, int64_t chunk = 1 << 20) {
    reset();
    const auto length = static_cast<int64_t>(prompt.size());
    std::vector<float> logits;
    for (int64_t at = 0; at < length; at += chunk)
      logits = step({prompt.begin() + at, prompt.begin() + std::min(at + chunk, length)}, image_id, length);
    Generation out;
    while (true) {
      const auto id = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      out.ids.push_back(id);
      out.logits.push_back(logits);
      if (static_cast<int64_t>(out.ids.size()) == max_new || std::find(eos.begin(), eos.end(), id) != eos.end())
        return out;
      logits = step({id}, -1);
    }
  }

 private:
  Tensor device(const std::string& name, DType dtype, std::initializer_list<int64_t> shape) {
    const size_t bytes = Tensor(nullptr, dtype, shape).bytes();
    Buffer& buffer = inputs_[name];
    if (buffer.size() < bytes) buffer = backend_.allocator().allocate(bytes, MemoryLine::kStaging, name);
    return buffer.tensor(dtype, shape);
  }
  Tensor upload(const std::string& name, const std::vector<int32_t>& values) {
    const Tensor tensor = device(name, DType::kI32, {static_cast<int64_t>(values.size())});
    backend_.upload(values.data(), tensor);
    backend_.synchronize();
    return tensor;
  }

  Backend& backend_;
  Options options_;
  ModelConfig config_;
  std::unique_ptr<Model> model_;
  Buffer kv_memory_, image_memory_;
  Tensor images_;
  KvCacheMemory kv_;
  std::map<std::string, Buffer> inputs_;
  int64_t past_ = 0;
  int32_t next_image_row_ = 0;
};

inline std::vector<double> log_softmax(const std::vector<float>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float v : logits) sum += std::exp(static_cast<double>(v) - top);
  std::vector<double> out;
  for (float v : logits) out.push_back(static_cast<double>(v) - top - std::log(sum));
  return out;
}

}  // namespace tessera::testing
