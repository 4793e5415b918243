#include "backends/registry.h"

#include "backends/cpu/cpu_backend.h"
#include "backends/cuda_choice/device_table.h"
#include "backends/cuda_choice/kernel_choice.h"
#include "ops/cuda_module.h"

namespace tessera {

std::vector<DeviceReport> discover_devices() {
  std::vector<DeviceReport> reports;
  if (auto module = open_cuda_module(); module.ok()) {
    reports = module.value()->discover();
  } else {
    DeviceReport& cuda = reports.emplace_back();
    cuda.name = cuda.limits.kind = "cuda";
    cuda.reason = module.status().message();
  }
  reports.push_back(cpu::report());
  return reports;
}

Result<std::unique_ptr<Backend>> open_backend(const BackendOptions& options) {
  if (options.device == "cpu") return cpu::open_backend(options);
  const bool any = options.device == "auto";
  if (!any && options.device.rfind("cuda", 0) != 0)
    return invalid_input("--device is \"" + options.device + "\"; expected auto, cpu, cuda or cuda:N");
  auto module = open_cuda_module();
  if (!module.ok()) {
    if (any) return cpu::open_backend(options);
    return invalid_input("--device " + options.device + ": " + module.status().message());
  }
  auto opened = module.value()->open(options);
  if (opened.ok() || !any) return opened;
  return cpu::open_backend(options);
}

Result<DeviceLimits> describe_device(const std::string& name_or_file) { return cuda::describe_device(name_or_file); }

Status impose_limits(DeviceLimits& limits, const std::vector<std::pair<std::string, int64_t>>& imposed) {
  return limits.kind == "cpu" ? cpu::impose_limits(limits, imposed) : cuda::impose_limits(limits, imposed);
}

std::vector<KernelChoice> explain_device(const DeviceLimits& limits, bool imposed, DType compute) {
  std::vector<KernelChoice> report;
  cuda::choose_kernels({.limits = limits, .weights = compute, .imposed = imposed}, &report);
  return report;
}

Result<std::unique_ptr<Sizing>> open_sizing(const DeviceLimits& limits) {
  if (limits.kind == "cpu") return cpu::open_sizing(limits);
  if (limits.kind == "cuda") return open_cuda_sizing(limits);
  return invalid_input("device kind is \"" + limits.kind + "\"; expected cpu or cuda");
}

}  // namespace tessera
