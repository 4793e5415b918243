#include "cli/bench_model.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "ops/embedding.h"

namespace tessera::cli {
namespace {

EngineShape shape_of(const BenchLimits& limits, int block_size) {
  EngineShape shape;
  shape.session_len = std::max<int64_t>(2, (limits.context + BenchLimits::kRoom - 1) / BenchLimits::kRoom * BenchLimits::kRoom);
  shape.max_sequences = limits.sequences;
  shape.step_tokens = std::max(limits.step_tokens, limits.sequences);
  shape.vision_batch = std::max<int64_t>(1, limits.tiles);
  shape.block_size = block_size;
  shape.kv_blocks = (limits.kv_tokens + block_size - 1) / block_size;
  shape.embedding_tiles = shape.vision_batch;
  return shape;
}

}  // namespace

Result<std::unique_ptr<BenchModel>> BenchModel::load(const Checkpoint& checkpoint, Backend& backend, DType compute,
                                                     const BenchLimits& limits) {
  std::unique_ptr<BenchModel> bench(new BenchModel(backend));
  try {
    TESSERA_ASSIGN_OR_RETURN(
        bench->memory_, build_engine_memory(checkpoint, backend, backend.allocator(), backend.host_allocator(),
                                            shape_of(limits, backend.sizing().kv_block_size()), {.compute = compute}));
  } catch (const OutOfMemory& error) {
    return does_not_fit(std::string(error.what()) + "; name fewer rows with --only");
  }
  bench->decode_ = std::make_unique<DecodeBench>(backend, bench->memory_);
  bench->fill_kv();
  bench->fill_tiles();
  backend.synchronize();
  return bench;
}

/// The cache begins full of small random numbers, so that reading it costs what it costs: one block, copied to all others.
void BenchModel::fill_kv() {
  const KvLayout& layout = memory_.kv.layout;
  const size_t element = size_of(layout.dtype);
  std::vector<float> numbers(layout.block_bytes() / element);
  std::minstd_rand engine(11);
  for (float& v : numbers) v = static_cast<float>(static_cast<int32_t>(engine()) % 1001 - 500) * 1e-3f;
  std::vector<char> block(layout.block_bytes());
  convert(numbers.data(), DType::kF32, block.data(), layout.dtype, numbers.size());
  std::vector<int32_t> pairs;
  for (int64_t b = 1; b < memory_.kv.blocks; ++b) pairs.insert(pairs.end(), {0, static_cast<int32_t>(b)});
  const auto copies = static_cast<int64_t>(pairs.size()) / 2;
  const Buffer on_device =
      backend_.allocator().allocate(DType::kI32, {std::max<int64_t>(1, copies), 2}, MemoryLine::kActivations, "bench");
  const Tensor list = on_device.tensor(DType::kI32, {copies, 2});
  backend_.upload(pairs.data(), list);
  for (int64_t layer = 0; layer < memory_.model->layers(); ++layer) {
    void* base = memory_.kv.layer(layer).base;
    backend_.upload(block.data(), Tensor(base, DType::kU8, {static_cast<int64_t>(block.size())}));
    copy_blocks(backend_.context(), {.base = base, .block_bytes = block.size(), .pairs = list});
  }
  backend_.synchronize();
}

void BenchModel::fill_tiles() {
  const ModelConfig& config = memory_.model->config();
  const int64_t tiles = memory_.shape.vision_batch, rows = tiles * config.tokens_per_tile();
  std::minstd_rand engine(7);
  const int64_t bytes = tiles * 3 * config.vision.image_size * config.vision.image_size;
  pixels_ = backend_.host_allocator().allocate(static_cast<size_t>(bytes), MemoryLine::kStaging, "tiles");
  std::generate_n(static_cast<uint8_t*>(pixels_.data()), bytes, [&] { return static_cast<uint8_t>(engine() >> 11); });
  upload_tiles(tiles);
  std::iota(memory_.step.destination(), memory_.step.destination() + rows, 0);
  destination_ = memory_.step.upload_destination(backend_, rows);
  backend_.fill_zero(memory_.embedding_rows);
}

void BenchModel::upload_tiles(int64_t tiles) {
  const ModelConfig& config = memory_.model->config();
  const int64_t bytes = 3 * config.vision.image_size * config.vision.image_size;
  for (int64_t i = 0; i < tiles; ++i) memory_.step.upload_tile(backend_, i, static_cast<uint8_t*>(pixels_.data()) + i * bytes);
}

void BenchModel::encode(int64_t tiles, bool upload) {
  if (upload) upload_tiles(tiles);
  Model& model = *memory_.model;
  backend_.run_captured(static_cast<uint64_t>(tiles), [&] {  // as the engine's VisionEncoder does
    const OpContext ctx = backend_.context();
    model.vision_begin(ctx, memory_.step.tiles(tiles));
    model.vision_run(ctx, 0, model.vision_layers());
    model.vision_finish(ctx, destination_.slice(0, tiles * model.config().tokens_per_tile()), memory_.embedding_rows);
  });
}

/// Fills the host mirrors and the block table for the first `tokens` tokens of a sequence.
StepShape BenchModel::prepare(int64_t tokens, int64_t image_rows) {
  const int64_t blocks = (tokens + memory_.shape.block_size - 1) / memory_.shape.block_size;
  const StepBuffers::Inputs in = memory_.step.inputs(tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    in.token_ids[t] = static_cast<int32_t>((t * 7919 + 13) % std::min<int64_t>(memory_.model->config().language.vocab, 100000));
    in.positions[t] = in.slots[t] = static_cast<int32_t>(t);
    in.rope_lengths[t] = static_cast<int32_t>(tokens);
    in.image_index[t] = t < image_rows ? static_cast<int32_t>(t) : -1;
  }
  in.query_offsets[0] = 0;
  in.query_offsets[1] = in.kv_lengths[0] = static_cast<int32_t>(tokens);
  in.logit_rows[0] = static_cast<int32_t>(tokens - 1);
  in.rows[0] = {};
  std::iota(memory_.step.table_row(0), memory_.step.table_row(0) + blocks, 0);
  memory_.step.change_table(0, 0, blocks);
  return {.tokens = tokens, .sequences = 1, .max_query = tokens, .max_kv = tokens, .logit_rows = 1};
}

void BenchModel::prefill(int64_t tokens, int64_t image_rows) {
  const StepShape shape = prepare(tokens, image_rows);
  backend_.upload_all(memory_.step.take_pieces(shape));
  StepInput input = memory_.step.input(shape);
  input.image_rows = memory_.embedding_rows;
  SampleArgs sampling = memory_.step.sampling(0, 1, /*edits=*/false, /*masks=*/false);
  sampling.valid_ids = memory_.model->config().language.vocab;
  sampling.logits = memory_.model->forward(backend_.context(), input, memory_.kv);
  sample(backend_.context(), sampling);
  memory_.step.download_samples(backend_, 1, /*top=*/false);
  backend_.synchronize();
}

}  // namespace tessera::cli
