#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/backend.h"

namespace tessera {

/// A device that is only its sizes: what load_model, Model::reserve and the rest of start-up are run with to make a
/// memory plan, whether the device is there or not. Its kernels are empty slots; nothing but counting works.
class PlanningBackend final : public Backend {
 public:
  PlanningBackend(const DeviceLimits& limits, const Sizing& sizing) : limits_(limits), sizing_(sizing) {}

  const DeviceLimits& limits() const override { return limits_; }
  const Sizing& sizing() const override { return sizing_; }
  const KernelTable& kernels() const override;
  Allocator& allocator() override { return device_; }
  Allocator& host_allocator() override { return host_; }
  Stream& stream() override { return stream_; }

  std::unique_ptr<Weight> make_weight(const LinearSpec& spec, const WeightSource* source, Allocator& allocator,
                                      MemoryLine line, const std::string& name) override;
  void reserve_workspace(const WorkspaceShape& shape, Allocator& allocator) override;
  void upload(const void*, const Tensor&) override {}
  void download(const Tensor&, void*) override {}
  void fill_zero(const Tensor&) override {}
  void synchronize() override {}
  std::vector<KernelChoice> explain(DType) const override { return {}; }

 private:
  struct NoStream final : Stream {};

  DeviceLimits limits_;
  const Sizing& sizing_;
  CountingAllocator device_, host_;
  NoStream stream_;
  Buffer workspace_;
};

}  // namespace tessera
