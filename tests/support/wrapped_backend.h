#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops/backend.h"

namespace tessera::testing {

/// A backend that hands everything on to another; tests override what they want to see or change.
class WrappedBackend : public Backend {
 public:
  explicit WrappedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}
  const DeviceLimits& limits() const override { return inner_->limits(); }
  const Sizing& sizing() const override { return inner_->sizing(); }
  const KernelTable& kernels() const override { return inner_->kernels(); }
  Allocator& allocator() override { return inner_->allocator(); }
  Allocator& host_allocator() override { return inner_->host_allocator(); }
  Stream& stream() override { return inner_->stream(); }
  std::unique_ptr<Weight> make_weight(const LinearSpec& spec, const WeightSource* source, Allocator& allocator,
                                      MemoryLine line, const std::string& name) override {
    return inner_->make_weight(spec, source, allocator, line, name);
  }
  void reserve_workspace(const WorkspaceShape& shape, Allocator& allocator) override {
    inner_->reserve_workspace(shape, allocator);
  }
  void upload(const void* host, const Tensor& device) override { inner_->upload(host, device); }
  void download(const Tensor& device, void* host) override { inner_->download(device, host); }
  void fill_zero(const Tensor& device) override { inner_->fill_zero(device); }
  void synchronize() override { inner_->synchronize(); }
  std::vector<KernelChoice> explain(DType compute) const override { return inner_->explain(compute); }

 protected:
  std::unique_ptr<Backend> inner_;
};

}  // namespace tessera::testing
