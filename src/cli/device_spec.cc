#include "cli/device_spec.h"

#include <cstdlib>
#include <optional>

#include "backends/registry.h"
#include "core/thread_pool.h"

namespace tessera::cli {
namespace {

constexpr int64_t kMaxDevices = 64;

Status bad(const std::string& part, const std::string& why) {
  return invalid_input("--devices has \"" + part + "\": " + why +
                       "; expected 4x24GiB, cpu:24GiB, 4xrtx3090, a list of these with commas, or auto");
}

std::optional<int64_t> parse_size(const std::string& text) {
  static constexpr struct {
    const char* suffix;
    double bytes;
  } kUnits[] = {{"GiB", 1024.0 * 1024 * 1024}, {"MiB", 1024.0 * 1024}, {"GB", 1e9}, {"MB", 1e6}, {"G", 1024.0 * 1024 * 1024}};
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  if (end == text.c_str() || !(number > 0) || number > 1e6 || text.find_first_of("xXpP") != std::string::npos)
    return std::nullopt;
  for (const auto& unit : kUnits)
    if (end == std::string(unit.suffix)) return static_cast<int64_t>(number * unit.bytes);
  return std::nullopt;
}

DeviceLimits sized(const std::string& kind, const std::string& size, int64_t bytes) {
  DeviceLimits limits;
  limits.kind = kind;
  limits.name = kind == "cpu" ? "cpu" : size;
  limits.memory_bytes = limits.memory_free_bytes = bytes;
  limits.peer_access = true;  // unless --no-peer-access
  if (kind == "cpu") limits.multiprocessors = available_cores();  // unless --threads
  return limits;
}

Status add_part(const std::string& part, std::vector<DeviceLimits>& devices) {
  if (part == "auto") {
    TESSERA_ASSIGN_OR_RETURN(std::vector<DeviceLimits> present, present_devices("auto"));
    for (DeviceLimits& limits : present) devices.push_back(std::move(limits));
    return {};
  }
  if (part.rfind("cpu:", 0) == 0) {
    const auto bytes = parse_size(part.substr(4));
    if (!bytes) return bad(part, "no size after cpu:");
    devices.push_back(sized("cpu", part, *bytes));
    return {};
  }
  size_t digits = 0;
  while (digits < part.size() && part[digits] >= '0' && part[digits] <= '9') ++digits;
  const bool counted = digits > 0 && digits <= 3 && digits < part.size() && part[digits] == 'x';
  const int64_t count = counted ? std::atoll(part.c_str()) : 1;
  const std::string what = counted ? part.substr(digits + 1) : part;
  if (count < 1 || count + static_cast<int64_t>(devices.size()) > kMaxDevices)
    return bad(part, "the number of devices must be 1.." + std::to_string(kMaxDevices));
  DeviceLimits limits;
  if (const auto bytes = parse_size(what)) {
    limits = sized("cuda", what, *bytes);
  } else {
    auto described = describe_device(what);
    if (!described.ok()) return bad(part, described.status().message());
    limits = *described;
  }
  devices.insert(devices.end(), static_cast<size_t>(count), limits);
  return {};
}

}  // namespace

Result<std::vector<DeviceLimits>> present_devices(const std::string& device) {
  const bool gpu = device.rfind("cuda", 0) == 0;
  if (!gpu && device != "auto" && device != "cpu")
    return invalid_input("--device is \"" + device + "\"; expected auto, cpu, cuda or cuda:N");
  std::vector<DeviceLimits> gpus, cpus;
  std::string reason = "there is no such device";
  for (const DeviceReport& report : discover_devices()) {
    if (!report.available)
      reason = report.reason;
    else if (report.limits.kind == "cpu")
      cpus.push_back(report.limits);
    else if (device == "auto" || device == "cuda" || device == report.name)
      gpus.push_back(report.limits);
  }
  if (device == "cpu" || (!gpu && gpus.empty())) return cpus;
  if (gpus.empty()) return invalid_input("--device " + device + ": " + reason);
  return gpus;
}

Result<std::vector<DeviceLimits>> parse_devices(const std::string& spec) {
  std::vector<DeviceLimits> devices;
  for (size_t begin = 0; begin <= spec.size();) {
    const size_t comma = std::min(spec.find(',', begin), spec.size());
    TESSERA_RETURN_IF_ERROR(add_part(spec.substr(begin, comma - begin), devices));
    begin = comma + 1;
  }
  for (const DeviceLimits& limits : devices)
    if (limits.kind != devices.front().kind)
      return bad(spec, "a plan is for GPUs or for the CPU, not for both");
  return devices;
}

}  // namespace tessera::cli
