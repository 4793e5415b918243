#include "cli/bench_model.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

namespace tessera::cli {

Tensor BenchModel::make(DType dtype, std::initializer_list<int64_t> shape, MemoryLine line) {
  buffers_.push_back(backend_.allocator().allocate(dtype, shape, line, "bench"));
  return buffers_.back().tensor(dtype, shape);
}

Result<std::unique_ptr<BenchModel>> BenchModel::load(const Checkpoint& checkpoint, Backend& backend, DType compute,
                                                     const BenchLimits& limits) {
  std::unique_ptr<BenchModel> bench(new BenchModel(backend, limits));
  TESSERA_ASSIGN_OR_RETURN(bench->model_, load_model(checkpoint, backend, backend.allocator(), {.compute = compute}));
  const ModelConfig& config = bench->model_->config();
  bench->model_->reserve({.vision_tiles = limits.tiles,
                          .step_tokens = limits.step_tokens,
                          .step_sequences = limits.sequences,
                          .logit_rows = limits.sequences,
                          .max_kv = limits.context},
                         backend.allocator());
  const int64_t n = limits.step_tokens, s = limits.sequences;
  const auto i32 = [&](std::initializer_list<int64_t> shape) { return bench->make(DType::kI32, shape, MemoryLine::kActivations); };
  bench->ids_ = i32({n}), bench->positions_ = i32({n}), bench->rope_lengths_ = i32({n}), bench->slots_ = i32({n});
  bench->image_index_ = i32({n}), bench->offsets_ = i32({s + 1}), bench->kv_lengths_ = i32({s}), bench->logit_rows_ = i32({s});
  bench->make_kv();
  bench->tables_ = i32({bench->kv_.blocks});
  bench->params_ = bench->make(DType::kU8, {s, sizeof(SamplingRow)}, MemoryLine::kLogits);
  bench->workspace_ = bench->make(DType::kU8, {static_cast<int64_t>(backend.sizing().sample_workspace_bytes(s, config.language.vocab)) + 1}, MemoryLine::kLogits);
  bench->out_ids_ = i32({s});
  bench->out_logprobs_ = bench->make(DType::kF32, {s}, MemoryLine::kLogits);
  const int64_t tiles = std::max<int64_t>(1, limits.tiles), side = config.vision.image_size, rows = tiles * config.tokens_per_tile();
  bench->image_rows_ = bench->make(bench->model_->precision().activation, {rows, config.language.hidden}, MemoryLine::kEmbeddingCache);
  backend.fill_zero(bench->image_rows_);
  if (limits.tiles > 0) {
    std::minstd_rand engine(7);
    bench->pixels_.resize(static_cast<size_t>(tiles * 3 * side * side));
    for (uint8_t& p : bench->pixels_) p = static_cast<uint8_t>(engine() >> 11);
    bench->tiles_ = bench->make(DType::kU8, {tiles, 3, side, side}, MemoryLine::kStaging);
    backend.upload(bench->pixels_.data(), bench->tiles_);
    std::vector<int32_t> order(static_cast<size_t>(rows));
    std::iota(order.begin(), order.end(), 0);
    bench->destination_ = i32({rows});
    backend.upload(order.data(), bench->destination_);
  }
  backend.synchronize();
  return bench;
}

/// The sequences of a step share the blocks out evenly; these begin full of small random numbers, so that reading them costs what it costs.
void BenchModel::make_kv() {
  kv_.layout = model_->kv_layout(backend_.sizing().kv_block_size());
  kv_.blocks = (limits_.kv_tokens + kv_.layout.block_size - 1) / kv_.layout.block_size;
  kv_.layer_stride = kv_.layout.block_bytes() * static_cast<size_t>(kv_.blocks);
  const int64_t layers = model_->layers(), stride = static_cast<int64_t>(kv_.layer_stride);
  const Tensor memory = make(DType::kU8, {layers, stride}, MemoryLine::kKvCache);
  kv_.base = memory.data;
  const size_t element = size_of(kv_.layout.dtype);
  std::vector<float> numbers(kv_.layout.block_bytes() / element);
  std::minstd_rand engine(11);
  for (float& v : numbers) v = static_cast<float>(static_cast<int32_t>(engine()) % 1001 - 500) * 1e-3f;
  std::vector<char> block(kv_.layout.block_bytes());
  convert(numbers.data(), DType::kF32, block.data(), kv_.layout.dtype, numbers.size());
  std::vector<char> layer(kv_.layer_stride);
  for (size_t at = 0; at < layer.size(); at += block.size()) std::memcpy(layer.data() + at, block.data(), block.size());
  for (int64_t l = 0; l < layers; ++l) {
    backend_.upload(layer.data(), memory.slice(l, 1));
    backend_.synchronize();
  }
}

void BenchModel::encode(int64_t tiles, bool upload) {
  const Tensor part = tiles_.slice(0, tiles);
  if (upload) backend_.upload(pixels_.data(), part);
  const OpContext ctx = backend_.context();
  model_->vision_begin(ctx, part);
  model_->vision_run(ctx, 0, model_->vision_layers());
  model_->vision_finish(ctx, Tensor(destination_.data, DType::kI32, {tiles * model_->config().tokens_per_tile()}), image_rows_);
}

void BenchModel::step(const std::vector<int32_t>& positions, int64_t sequences, int64_t query, int64_t image_rows) {
  const auto tokens = static_cast<int64_t>(positions.size());
  const int64_t kv_length = positions.back() + 1;
  const int64_t sequence_blocks = (kv_length + kv_.layout.block_size - 1) / kv_.layout.block_size;
  std::vector<int32_t> ids(positions.size()), slots(positions.size()), images(positions.size(), -1), lengths(positions.size());
  std::vector<int32_t> offsets(static_cast<size_t>(sequences + 1)), kv_lengths(static_cast<size_t>(sequences), static_cast<int32_t>(kv_length));
  std::vector<int32_t> tables(static_cast<size_t>(sequences * sequence_blocks)), rows(static_cast<size_t>(sequences));
  std::iota(tables.begin(), tables.end(), 0);
  const int block = kv_.layout.block_size;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto i = static_cast<size_t>(t);
    const int64_t sequence = t / query;
    ids[i] = static_cast<int32_t>((t * 7919 + 13) % std::min<int64_t>(model_->config().language.vocab, 100000));
    slots[i] = static_cast<int32_t>(sequence * sequence_blocks * block + positions[i]);
    lengths[i] = static_cast<int32_t>(kv_length);
    if (t < image_rows) images[i] = static_cast<int32_t>(t);
  }
  for (int64_t s = 0; s <= sequences; ++s) offsets[static_cast<size_t>(s)] = static_cast<int32_t>(s * query);
  for (int64_t s = 0; s < sequences; ++s) rows[static_cast<size_t>(s)] = static_cast<int32_t>((s + 1) * query - 1);
  const auto put = [&](const std::vector<int32_t>& values, const Tensor& at) {
    Tensor view(at.data, DType::kI32, {static_cast<int64_t>(values.size())});
    backend_.upload(values.data(), view);
    return view;
  };
  StepInput input;
  input.shape = {.tokens = tokens, .sequences = sequences, .decodes = query == 1 ? sequences : 0, .max_query = query, .max_kv = kv_length, .logit_rows = sequences};
  input.token_ids = put(ids, ids_);
  input.positions = put(positions, positions_);
  input.rope_lengths = put(lengths, rope_lengths_);
  input.slots = put(slots, slots_);
  input.image_index = put(images, image_index_);
  input.query_offsets = put(offsets, offsets_);
  input.kv_lengths = put(kv_lengths, kv_lengths_);
  const Tensor flat = put(tables, tables_);
  input.block_tables = Tensor(flat.data, DType::kI32, {sequences, sequence_blocks});
  input.logit_rows = put(rows, logit_rows_);
  input.image_rows = image_rows_;
  sample_rows(model_->forward(backend_.context(), input, kv_));
}

void BenchModel::sample_rows(const Tensor& logits) {
  const int64_t rows = logits.rows();
  const std::vector<SamplingRow> params(static_cast<size_t>(rows));
  backend_.upload(params.data(), params_.slice(0, rows));
  sample(backend_.context(), {.logits = logits,
                              .valid_ids = model_->config().language.vocab,
                              .params = params_.slice(0, rows),
                              .workspace = workspace_,
                              .out_ids = Tensor(out_ids_.data, DType::kI32, {rows}),
                              .out_logprobs = Tensor(out_logprobs_.data, DType::kF32, {rows})});
  std::vector<int32_t> ids(static_cast<size_t>(rows));
  backend_.download(Tensor(out_ids_.data, DType::kI32, {rows}), ids.data());
  backend_.synchronize();
}

void BenchModel::prefill(int64_t tokens, int64_t image_rows) {
  std::vector<int32_t> positions(static_cast<size_t>(tokens));
  std::iota(positions.begin(), positions.end(), 0);
  step(positions, 1, tokens, image_rows);
}

void BenchModel::decode(int64_t batch, int64_t context) {
  step(std::vector<int32_t>(static_cast<size_t>(batch), static_cast<int32_t>(context - 1)), batch, 1, 0);
}

}  // namespace tessera::cli
