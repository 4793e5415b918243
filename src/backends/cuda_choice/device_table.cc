#include "backends/cuda_choice/device_table.h"

#include <algorithm>
#include <array>

#include "core/json.h"

namespace tessera::cuda {
namespace {

struct Field {
  const char* name;
  int64_t DeviceLimits::*member;
};

constexpr std::array<Field, 12> kFields = {{
    {"memory_bytes", &DeviceLimits::memory_bytes},
    {"memory_free_bytes", &DeviceLimits::memory_free_bytes},
    {"shared_memory_per_block", &DeviceLimits::shared_memory_per_block},
    {"shared_memory_optin", &DeviceLimits::shared_memory_optin},
    {"registers_per_block", &DeviceLimits::registers_per_block},
    {"max_threads_per_block", &DeviceLimits::max_threads_per_block},
    {"warp_size", &DeviceLimits::warp_size},
    {"multiprocessors", &DeviceLimits::multiprocessors},
    {"l2_bytes", &DeviceLimits::l2_bytes},
    {"clock_khz", &DeviceLimits::clock_khz},
    {"memory_clock_khz", &DeviceLimits::memory_clock_khz},
    {"compute_capability", &DeviceLimits::compute_capability},
}};

struct Flag {
  const char* name;
  bool DeviceLimits::*member;
};

constexpr std::array<Flag, 3> kFlags = {{
    {"peer_access", &DeviceLimits::peer_access},
    {"tensor_cores_bf16", &DeviceLimits::tensor_cores_bf16},
    {"wgmma", &DeviceLimits::wgmma},
}};

struct BuiltIn {
  const char* key;
  DeviceLimits limits;
};

constexpr int64_t kMiB = int64_t{1} << 20;

/// Memory is what the driver reports as total. Data sheets give the rest; the H200 was also read off a device.
const std::vector<BuiltIn>& table() {
  static const std::vector<BuiltIn> kTable = {
      {"h200",
       {.name = "NVIDIA H200", .kind = "cuda", .memory_bytes = 143771 * kMiB, .shared_memory_per_block = 49152,
        .shared_memory_optin = 232448, .registers_per_block = 65536, .max_threads_per_block = 1024, .warp_size = 32,
        .multiprocessors = 132, .l2_bytes = 60 * kMiB, .clock_khz = 1980000, .memory_clock_khz = 3201000,
        .compute_capability = 90, .peer_access = true, .tensor_cores_bf16 = true, .wgmma = true}},
      {"h100",
       {.name = "NVIDIA H100 80GB HBM3", .kind = "cuda", .memory_bytes = 81559 * kMiB,
        .shared_memory_per_block = 49152, .shared_memory_optin = 232448, .registers_per_block = 65536,
        .max_threads_per_block = 1024, .warp_size = 32, .multiprocessors = 132, .l2_bytes = 50 * kMiB,
        .clock_khz = 1980000, .memory_clock_khz = 2619000, .compute_capability = 90, .peer_access = true,
        .tensor_cores_bf16 = true, .wgmma = true}},
      {"a100",
       {.name = "NVIDIA A100-SXM4-80GB", .kind = "cuda", .memory_bytes = 81920 * kMiB,
        .shared_memory_per_block = 49152, .shared_memory_optin = 166912, .registers_per_block = 65536,
        .max_threads_per_block = 1024, .warp_size = 32, .multiprocessors = 108, .l2_bytes = 40 * kMiB,
        .clock_khz = 1410000, .memory_clock_khz = 1593000, .compute_capability = 80, .peer_access = true,
        .tensor_cores_bf16 = true}},
      {"rtx4090",
       {.name = "NVIDIA GeForce RTX 4090", .kind = "cuda", .memory_bytes = 24564 * kMiB,
        .shared_memory_per_block = 49152, .shared_memory_optin = 101376, .registers_per_block = 65536,
        .max_threads_per_block = 1024, .warp_size = 32, .multiprocessors = 128, .l2_bytes = 72 * kMiB,
        .clock_khz = 2520000, .memory_clock_khz = 10501000, .compute_capability = 89, .tensor_cores_bf16 = true}},
      {"rtx3090",
       {.name = "NVIDIA GeForce RTX 3090", .kind = "cuda", .memory_bytes = 24576 * kMiB,
        .shared_memory_per_block = 49152, .shared_memory_optin = 101376, .registers_per_block = 65536,
        .max_threads_per_block = 1024, .warp_size = 32, .multiprocessors = 82, .l2_bytes = 6 * kMiB,
        .clock_khz = 1695000, .memory_clock_khz = 9751000, .compute_capability = 86, .tensor_cores_bf16 = true}},
      // Known of it: 64 GB, and that a block gets 64 KB of shared memory (72 and 96 KB were asked for and refused).
      // Everything else is left unknown, so that only kernels which need nothing else are chosen.
      {"mxc500",
       {.name = "MetaX C500", .kind = "cuda", .memory_bytes = 65536 * kMiB, .shared_memory_per_block = 65536,
        .shared_memory_optin = 65536, .max_threads_per_block = 1024}},
  };
  return kTable;
}

Status invalid(const std::string& message) { return {StatusCode::kInvalidInput, message}; }

Result<DeviceLimits> from_json(const std::string& path) {
  JsonLimits bounds;
  bounds.max_bytes = size_t{1} << 20;
  TESSERA_ASSIGN_OR_RETURN(Json json, Json::parse_file(path, bounds));
  if (!json.is_object()) return invalid("[device-limits] " + path + " is not a JSON object of DeviceLimits fields");
  DeviceLimits limits{.name = path, .kind = "cuda"};
  JsonReader reader(json, path);
  for (const auto& [key, value] : json.as_object()) {
    if (key == "name") {
      TESSERA_ASSIGN_OR_RETURN(limits.name, reader.string(key));
      continue;
    }
    const std::string& name = key;
    const auto* field = std::find_if(kFields.begin(), kFields.end(), [&](const Field& f) { return name == f.name; });
    if (field != kFields.end()) {
      TESSERA_ASSIGN_OR_RETURN(limits.*field->member, reader.integer(key, 0, int64_t{1} << 50));
      continue;
    }
    const auto* flag = std::find_if(kFlags.begin(), kFlags.end(), [&](const Flag& f) { return name == f.name; });
    if (flag == kFlags.end()) return invalid("[device-limits] " + path + ": unknown field \"" + key + "\"");
    TESSERA_ASSIGN_OR_RETURN(limits.*flag->member, reader.boolean_or(key, false));
  }
  if (limits.memory_bytes == 0) return invalid("[device-limits] " + path + ": memory_bytes is missing");
  if (limits.shared_memory_per_block == 0) limits.shared_memory_per_block = 49152;
  limits.shared_memory_optin = std::max(limits.shared_memory_optin, limits.shared_memory_per_block);
  return limits;
}

}  // namespace

std::vector<std::string> built_in_devices() {
  std::vector<std::string> names;
  for (const BuiltIn& entry : table()) names.emplace_back(entry.key);
  return names;
}

Result<DeviceLimits> describe_device(const std::string& name_or_file) {
  for (const BuiltIn& entry : table())
    if (name_or_file == entry.key) return entry.limits;
  if (name_or_file.find_first_of("./") != std::string::npos) return from_json(name_or_file);
  std::string known;
  for (const std::string& name : built_in_devices()) known += (known.empty() ? "" : ", ") + name;
  return invalid("[device-limits] unknown device \"" + name_or_file + "\"; give one of " + known +
                 " or the path of a JSON file");
}

Status impose_limits(DeviceLimits& limits, const std::vector<std::pair<std::string, int64_t>>& imposed) {
  for (const auto& entry : imposed) {
    const std::string& name = entry.first;
    const int64_t value = entry.second;
    const auto* field = std::find_if(kFields.begin(), kFields.end(), [&](const Field& f) { return name == f.name; });
    if (field == kFields.end()) {
      std::string known;
      for (const Field& f : kFields) known += std::string(known.empty() ? "" : ", ") + f.name;
      return invalid("[limit] unknown limit \"" + name + "\"; known are " + known);
    }
    const bool shared = name == "shared_memory_per_block";
    const int64_t own = shared ? std::max(limits.shared_memory_per_block, limits.shared_memory_optin)
                               : limits.*field->member;
    if (value <= 0 || (own != 0 && value > own))
      return invalid("[limit] " + name + "=" + std::to_string(value) + " is not in [1, " +
                     (own ? std::to_string(own) : "any") + "] of " + limits.name);
    limits.*field->member = value;
    if (shared) limits.shared_memory_optin = value;
    if (name == "shared_memory_optin")
      limits.shared_memory_per_block = std::min(limits.shared_memory_per_block, value);
  }
  return {};
}

void impose_description(DeviceLimits& limits, const DeviceLimits& described) {
  for (const Field& field : kFields)
    if (const int64_t value = described.*field.member; value > 0)
      limits.*field.member = std::min(limits.*field.member, value);
  limits.memory_free_bytes = std::min(limits.memory_free_bytes, limits.memory_bytes);
  for (const Flag& flag : kFlags) limits.*flag.member = limits.*flag.member && described.*flag.member;
}

}  // namespace tessera::cuda
