#include <cstdio>
#include <sstream>

#include "backends/registry.h"
#include "cli/arg_parser.h"
#include "cli/commands.h"
#include "cli/device_flags.h"
#include "cli/engine_flags.h"
#include "core/json.h"
#include "models/checkpoint.h"

namespace tessera::cli {
namespace {

struct DoctorOptions {
  std::string model;
  DeviceFlags device;
  bool json = false;
};

struct Diagnosis {
  std::vector<DeviceReport> devices;
  DeviceLimits limits;  ///< of the device that would be used
  DType compute = DType::kBF16;
  bool described = false;  ///< by --device-limits; it need not be there
  std::vector<KernelChoice> kernels;
  std::string model;
};

/// A device that need not be there: its limits by description, its kernels by the same choice.
Status examine_described(const BackendOptions& asked, Diagnosis& d) {
  TESSERA_ASSIGN_OR_RETURN(d.limits, describe_device(asked.device_limits));
  TESSERA_RETURN_IF_ERROR(impose_limits(d.limits, asked.limits));
  d.described = true;
  d.kernels = explain_device(d.limits, !asked.limits.empty(), d.compute);
  return {};
}

Status examine_present(const BackendOptions& asked, Diagnosis& d) {
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, open_backend(asked));
  d.limits = backend->limits();
  d.kernels = backend->explain(d.compute);
  return {};
}

Result<Diagnosis> examine(const DoctorOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(const BackendOptions asked, options.device.backend_options());
  Diagnosis d;
  d.devices = discover_devices();
  if (!options.model.empty()) {
    TESSERA_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(options.model, {.allow_catalogue = true}));
    d.compute = checkpoint.config().stored;
    d.model = checkpoint.name() + ": " + checkpoint.config().language.architecture + ", " +
              std::to_string(checkpoint.config().language.layers) + " language layers, " +
              std::to_string(checkpoint.config().vision.layers) + " vision layers, stored as " + dtype_name(d.compute);
  }
  d.compute = options.device.compute(d.compute);
  TESSERA_RETURN_IF_ERROR(asked.device_limits.empty() ? examine_present(asked, d) : examine_described(asked, d));
  return d;
}

void print_fact(std::ostringstream& out, const std::string& name, const std::string& value) {
  out << "  " << name << std::string(name.size() < 24 ? 24 - name.size() : 1, ' ') << value << '\n';
}

/// What kernel choice and the memory plan look at. 0 is unknown.
void print_limits(std::ostringstream& out, const DeviceLimits& limits) {
  const auto number = [&](const char* name, int64_t value, const char* unit) {
    print_fact(out, name, value ? std::to_string(value) + unit : "unknown");
  };
  print_fact(out, "device", limits.name);
  number("memory", limits.memory_bytes >> 20, " MiB");
  if (limits.memory_free_bytes) number("memory free", limits.memory_free_bytes >> 20, " MiB");
  number("compute capability", limits.compute_capability, "");
  number("shared memory a block", limits.shared_memory_per_block, " bytes");
  number("  when asked for", limits.shared_memory_optin, " bytes");
  number("registers a block", limits.registers_per_block, "");
  number("threads a block", limits.max_threads_per_block, "");
  number("threads a warp", limits.warp_size, "");
  number("multiprocessors", limits.multiprocessors, "");
  number("L2 cache", limits.l2_bytes >> 20, " MiB");
  number("clock", limits.clock_khz / 1000, " MHz");
  number("memory clock", limits.memory_clock_khz / 1000, " MHz");
  print_fact(out, "mma.sync on bf16", limits.tensor_cores_bf16 ? "yes" : "no");
  print_fact(out, "wgmma", limits.wgmma ? "yes" : "no");
  print_fact(out, "peer access", limits.peer_access ? "yes" : "no");
}

void print_device(std::ostringstream& out, const DeviceReport& device) {
  out << device.name << (device.available ? "" : ": not available") << '\n';
  if (!device.reason.empty()) out << "  " << device.reason << '\n';
  for (const auto& [name, value] : device.facts) print_fact(out, name, value);
  if (device.limits.kind != "cpu" && device.available) print_limits(out, device.limits);
  if (device.architectures.empty() || device.limits.kind == "cpu") return;
  out << "  module has code for    ";
  for (const std::string& architecture : device.architectures) out << ' ' << architecture;
  out << '\n';
}

std::string as_text(const Diagnosis& d) {
  std::ostringstream out;
  for (const DeviceReport& device : d.devices) print_device(out, device);
  if (d.described) {
    out << "\ndescribed\n";
    print_limits(out, d.limits);
  }
  if (!d.model.empty()) out << "\nmodel\n  " << d.model << '\n';
  out << "\nkernels on " << d.limits.name << " for " << dtype_name(d.compute);
  if (d.limits.kind == "cpu") out << " with " << d.limits.multiprocessors << " threads";
  out << '\n';
  for (const KernelChoice& choice : d.kernels) {
    out << "  " << choice.op << std::string(choice.op.size() < 44 ? 44 - choice.op.size() : 1, ' ') << choice.kernel
        << ": " << choice.reason << '\n';
    for (const auto& [kernel, reason] : choice.refused)
      out << std::string(46, ' ') << "not " << kernel << ": " << reason << '\n';
  }
  return out.str();
}

Json limits_json(const DeviceLimits& limits) {
  Json json;
  json.set("name", limits.name);
  json.set("kind", limits.kind);
  json.set("memory_bytes", limits.memory_bytes);
  json.set("memory_free_bytes", limits.memory_free_bytes);
  json.set("multiprocessors", limits.multiprocessors);
  json.set("l2_bytes", limits.l2_bytes);
  json.set("shared_memory_per_block", limits.shared_memory_per_block);
  json.set("shared_memory_optin", limits.shared_memory_optin);
  json.set("registers_per_block", limits.registers_per_block);
  json.set("max_threads_per_block", limits.max_threads_per_block);
  json.set("warp_size", limits.warp_size);
  json.set("clock_khz", limits.clock_khz);
  json.set("memory_clock_khz", limits.memory_clock_khz);
  json.set("tensor_cores_bf16", limits.tensor_cores_bf16);
  json.set("wgmma", limits.wgmma);
  json.set("compute_capability", limits.compute_capability);
  json.set("peer_access", limits.peer_access);
  return json;
}

Json device_json(const DeviceReport& device) {
  Json json, facts = Json::object(), architectures = Json::array();
  for (const auto& [name, value] : device.facts) facts.set(name, value);
  for (const std::string& architecture : device.architectures) architectures.push_back(architecture);
  json.set("name", device.name);
  json.set("available", device.available);
  json.set("reason", device.reason);
  json.set("facts", std::move(facts));
  json.set("architectures", std::move(architectures));
  if (device.available) json.set("limits", limits_json(device.limits));
  return json;
}

Json kernel_json(const KernelChoice& choice) {
  Json json, refused = Json::array();
  for (const auto& [kernel, reason] : choice.refused) {
    Json one;
    one.set("kernel", kernel);
    one.set("reason", reason);
    refused.push_back(std::move(one));
  }
  json.set("op", choice.op);
  json.set("kernel", choice.kernel);
  json.set("reason", choice.reason);
  json.set("refused", std::move(refused));
  return json;
}

Json as_json(const Diagnosis& d) {
  Json json, devices = Json::array(), kernels = Json::array();
  for (const DeviceReport& device : d.devices) devices.push_back(device_json(device));
  for (const KernelChoice& choice : d.kernels) kernels.push_back(kernel_json(choice));
  json.set("devices", std::move(devices));
  json.set("used", limits_json(d.limits));
  json.set("dtype", dtype_name(d.compute));
  if (!d.model.empty()) json.set("model", d.model);
  json.set("kernels", std::move(kernels));
  return json;
}

}  // namespace

int doctor_command(std::span<const std::string> args) {
  ArgParser parser("tessera doctor", "Shows devices, their limits, and which kernels would be used and why.");
  DoctorOptions options;
  parser.positional("MODEL", &options.model, "look with this model's data type: a checkpoint or a released model's name",
                    /*required=*/false);
  options.device.add_to(parser);
  parser.flag("--json", &options.json, "print one JSON object");
  if (auto code = parser.parse(args)) return *code;
  auto diagnosis = examine(options);
  if (!diagnosis.ok()) return fail("doctor", diagnosis.status());
  const std::string text = options.json ? as_json(diagnosis.value()).dump(2) + "\n" : as_text(diagnosis.value());
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace tessera::cli
