#include "runtime/engine_memory.h"

namespace tessera {

EngineMemory reserve_engine_memory(std::unique_ptr<Model> model, Backend& backend, Allocator& device,
                                   Allocator& host, const EngineShape& shape, const ModelShard& shard) {
  EngineMemory memory;
  memory.shape = shape;
  memory.model = std::move(model);
  EngineShape own = shape;
  if (!shard.vision) own.vision_batch = 0;
  memory.model->reserve({.vision_tiles = own.vision_batch,
                         .step_tokens = shape.step_tokens,
                         .step_sequences = shape.max_sequences,
                         .logit_rows = shape.max_sequences,
                         .max_kv = shape.session_len},
                        device);

  const KvLayout layout = memory.model->kv_layout(static_cast<int>(shape.block_size));
  const size_t stride = layout.block_bytes() * static_cast<size_t>(shape.kv_blocks);
  memory.kv_buffer = device.allocate(stride * static_cast<size_t>(memory.model->layers()), MemoryLine::kKvCache, "KV cache");
  memory.kv = {.layout = layout, .base = memory.kv_buffer.data(), .layer_stride = stride, .blocks = shape.kv_blocks};

  const ModelConfig& config = memory.model->config();
  if (shard.first_layer == 0) {
    const int64_t rows = shape.embedding_tiles * config.tokens_per_tile();
    const DType dtype = memory.model->precision().activation;
    memory.embedding_buffer =
        device.allocate(dtype, {rows, config.language.hidden}, MemoryLine::kEmbeddingCache, "embedding cache");
    memory.embedding_rows = Tensor(memory.embedding_buffer.data(), dtype, {rows, config.language.hidden});
  }
  if (shard.rank.index == 0 && shard.first_layer == 0)  // host memory is one for all ranks
    memory.host_tiles = host.allocate(static_cast<size_t>(shape.host_tiles * 3 * config.vision.image_size * config.vision.image_size),
                                      MemoryLine::kStaging, "tiles of pictures");
  memory.step = StepBuffers(backend.sizing(), device, host, own, config);
  return memory;
}

}  // namespace tessera
