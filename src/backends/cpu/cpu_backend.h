#pragma once

#include <memory>
#include <vector>

#include "backends/cpu/cpu_allocator.h"
#include "backends/cpu/cpu_stream.h"
#include "backends/cpu/kernel_choice.h"
#include "core/result.h"
#include "ops/backend.h"
#include "ops/device.h"

namespace tessera::cpu {

/// The processor as a device: `threads` (0: available_cores()) stands in `multiprocessors`, memory is the machine's or the
/// cgroup's, whichever is less.
DeviceLimits probe_limits(int threads);

/// Always available; facts are the model, instruction sets, cores and memory.
DeviceReport report();

/// Imposes `--limit NAME=VALUE` pairs; a limit can only lower what there is.
Status impose_limits(DeviceLimits& limits, const std::vector<std::pair<std::string, int64_t>>& imposed);

Result<std::unique_ptr<Backend>> open_backend(const BackendOptions& options);
Result<std::unique_ptr<Sizing>> open_sizing(const DeviceLimits& limits);

class CpuSizing final : public Sizing {
 public:
  explicit CpuSizing(const DeviceLimits& limits) : threads_(std::max<int64_t>(1, limits.multiprocessors)) {}

  Precision precision(DType compute) const override;
  size_t weight_bytes(const LinearSpec& spec) const override;
  size_t kernel_workspace_bytes(const WorkspaceShape& shape) const override;
  size_t sample_workspace_bytes(int64_t rows, int64_t vocab) const override;
  /// The program's own resident memory: code, libraries, tokenizer, stacks, heap. Measured.
  size_t driver_bytes() const override { return size_t{40} << 20; }

 private:
  int64_t threads_;
};

/// Kernels run on the calling thread and its pool, and are done when the call returns.
class CpuBackend final : public Backend {
 public:
  CpuBackend(const DeviceLimits& limits, KernelSet kernels);

  const DeviceLimits& limits() const override { return limits_; }
  const Sizing& sizing() const override { return sizing_; }
  const KernelTable& kernels() const override;
  Allocator& allocator() override { return allocator_; }
  Allocator& host_allocator() override { return host_allocator_; }
  Stream& stream() override { return stream_; }
  std::unique_ptr<Weight> make_weight(const LinearSpec& spec, const WeightSource* source, Allocator& allocator,
                                      MemoryLine line, const std::string& name) override;
  void reserve_workspace(const WorkspaceShape& shape, Allocator& allocator) override;
  void upload(const void* host, const Tensor& device) override;
  void download(const Tensor& device, void* host) override;
  void fill_zero(const Tensor& device) override;
  void synchronize() override {}
  std::vector<KernelChoice> explain(DType compute) const override;
  DeviceSpeed measure_speed(DType compute) override;

 private:
  DeviceLimits limits_;
  CpuSizing sizing_;
  CpuAllocator allocator_, host_allocator_;
  KernelSet kernels_;
  CpuStream stream_;
  Buffer scratch_;
};

}  // namespace tessera::cpu
