#include "runtime/engine_memory.h"

namespace tessera {

Result<EngineMemory> build_engine_memory(const Checkpoint& checkpoint, Backend& backend, Allocator& device,
                                         Allocator& host, const EngineShape& shape, const LoadOptions& load) {
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, load_model(checkpoint, backend, device, load));
  return reserve_engine_memory(std::move(model), backend, device, host, shape, load.shard);
}

}  // namespace tessera
