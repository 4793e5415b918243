#pragma once

#include <memory>

#include "models/model.h"
#include "ops/backend.h"
#include "runtime/engine_shape.h"
#include "runtime/step_buffers.h"

namespace tessera {

/// All memory that one rank of a running engine holds. Order of members: buffers go before the model they serve.
struct EngineMemory {
  EngineShape shape;
  std::unique_ptr<Model> model;
  Buffer kv_buffer;
  KvCacheMemory kv;
  Buffer embedding_buffer;
  Tensor embedding_rows;  ///< [embedding_tiles * tokens_per_tile, hidden], activation dtype
  Buffer host_tiles;      ///< u8 [shape.host_tiles, 3, side, side]; the pipeline's, which fills it
  StepBuffers step;
};

/// Loads the model and allocates everything else that the engine will ever hold on this rank: KV cache, embedding
/// cache, activations, vision workspace, logits, sampling, staging, tiles of pictures. Start-up runs it with the backend's allocators; the
/// memory plan runs it with CountingAllocators, so that plan and fact are the same code. `host` gives the memory that
/// transfers quickly; on a CPU pass the device's own. Requires: shape from resolve_shape() or plan_memory().
/// Errors: the checkpoint's (see load_model); throws OutOfMemory when an allocator has not enough.
Result<EngineMemory> build_engine_memory(const Checkpoint& checkpoint, Backend& backend, Allocator& device,
                                         Allocator& host, const EngineShape& shape, const LoadOptions& load);

/// The same for a model that is loaded already (its memory must be in `device`, too).
EngineMemory reserve_engine_memory(std::unique_ptr<Model> model, Backend& backend, Allocator& device,
                                   Allocator& host, const EngineShape& shape, const ModelShard& shard = {});

}  // namespace tessera
