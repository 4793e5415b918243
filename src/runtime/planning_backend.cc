#include "runtime/planning_backend.h"

namespace tessera {

const KernelTable& PlanningBackend::kernels() const {
  static constexpr KernelTable kNone{.device = "plan"};
  return kNone;
}

std::unique_ptr<Weight> PlanningBackend::make_weight(const LinearSpec& spec, const WeightSource*, Allocator& allocator,
                                                     MemoryLine line, const std::string& name) {
  return std::make_unique<Weight>(spec, allocator.allocate(sizing_.weight_bytes(spec), line, name));
}

void PlanningBackend::reserve_workspace(const WorkspaceShape& shape, Allocator& allocator) {
  workspace_ = allocator.allocate(sizing_.kernel_workspace_bytes(shape), MemoryLine::kActivations, "kernel workspace");
}

}  // namespace tessera
