#include "cli/device_flags.h"

#include <cstdlib>

namespace tessera::cli {
namespace {

// `--limit NAME=VALUE`, as many as were given.
Result<std::vector<std::pair<std::string, int64_t>>> parse_limits(const std::vector<std::string>& limits) {
  std::vector<std::pair<std::string, int64_t>> parsed;
  for (const std::string& limit : limits) {
    const size_t equals = limit.find('=');
    char* end = nullptr;
    const std::string value = equals == std::string::npos ? "" : limit.substr(equals + 1);
    const long long number = std::strtoll(value.c_str(), &end, 10);
    if (equals == 0 || value.empty() || *end != '\0' || number < 0)
      return invalid_input("--limit is \"" + limit + "\"; expected NAME=VALUE, such as shared_memory_per_block=65536");
    parsed.emplace_back(limit.substr(0, equals), number);
  }
  return parsed;
}

}  // namespace

void DeviceFlags::add_to(ArgParser& parser) {
  parser.choice("--dtype", &dtype, {"auto", "bf16", "f16", "f32"},
                "compute dtype; auto is the checkpoint's (weights and KV in it, sums in f32)");
  parser.option("--device", &device, "auto, cpu, cuda or cuda:N");
  parser.choice("--isa", &isa, {"auto", "plain", "avx2", "avx512", "avx512_bf16", "amx_bf16"},
                "CPU kernels; auto is measured (see tessera doctor)");
  parser.option("--threads", &threads, 0, 1024, "CPU threads that compute; 0: the cores that affinity and cgroup allow");
  parser.list("--limit", &limits, "impose a device limit, NAME=VALUE (shared_memory_per_block=65536); repeatable");
  parser.option("--device-limits", &device_limits,
                "a described GPU (h200, h100, a100, rtx4090, rtx3090, mxc500, or a JSON file) that this device is to look "
                "like; plan and doctor do without the device");
}

DType DeviceFlags::compute(DType stored) const {
  for (const DType type : {DType::kBF16, DType::kF16, DType::kF32})
    if (dtype == dtype_name(type)) return type;
  return stored;
}

Result<BackendOptions> DeviceFlags::backend_options() const {
  if (device == "cpu" && !device_limits.empty())
    return invalid_input("--device-limits " + device_limits + " describes a GPU; leave --device cpu out");
  const bool gpu = device.rfind("cuda", 0) == 0 || !device_limits.empty();
  if (gpu && isa != "auto")
    return invalid_input("--isa " + isa + " chooses CPU kernels, but the device is a GPU; leave --isa out");
  if (gpu && threads != 0)
    return invalid_input("--threads " + std::to_string(threads) +
                         " is for computing on the CPU, but the device is a GPU; leave --threads out");
  BackendOptions options{
      .device = device, .threads = static_cast<int>(threads), .isa = isa, .device_limits = device_limits};
  TESSERA_ASSIGN_OR_RETURN(options.limits, parse_limits(limits));
  return options;
}

}  // namespace tessera::cli
