#include "backends/cpu/cpu_backend.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <thread>

#include "backends/cpu/cpu_info.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/packed_weight.h"
#include "backends/cpu/sample_workspace.h"

namespace tessera::cpu {

DeviceLimits probe_limits(int threads) {
  const MemoryInfo memory = memory_info();
  DeviceLimits limits;
  limits.name = "cpu";
  limits.memory_bytes = memory.total;
  limits.memory_free_bytes = memory.available;
  if (memory.cgroup_limit > 0) {
    limits.memory_bytes = std::min(limits.memory_bytes, memory.cgroup_limit);
    limits.memory_free_bytes =
        std::min(limits.memory_free_bytes, std::max<int64_t>(0, memory.cgroup_limit - memory.cgroup_used));
  }
  limits.multiprocessors = threads > 0 ? threads : available_cores();
  limits.l2_bytes = cpu_features().l2_bytes;
  return limits;
}

namespace {

std::string gib(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  return text;
}

}  // namespace

DeviceReport report() {
  const CpuFeatures& features = cpu_features();
  const MemoryInfo memory = memory_info();
  DeviceReport device;
  device.name = "cpu";
  device.available = true;
  device.limits = probe_limits(0);
  device.architectures = instruction_sets(features);
  std::string sets;
  for (const std::string& set : device.architectures) sets += (sets.empty() ? "" : ", ") + set;
  device.facts = {{"model", features.model},
                  {"instruction sets", sets.empty() ? "baseline" : sets},
                  {"cores allowed", std::to_string(available_cores()) + " (affinity mask and cgroup quota)"},
                  {"threads of the machine", std::to_string(std::thread::hardware_concurrency())},
                  {"memory", gib(memory.total) + ", " + gib(memory.available) + " available"},
                  {"cgroup memory limit",
                   memory.cgroup_limit ? gib(memory.cgroup_limit) + ", " + gib(memory.cgroup_used) + " used" : "none"}};
  return device;
}

namespace {

/// `--limit NAME=VALUE`: a limit that is imposed can only be lower than what is there.
Status impose(DeviceLimits& limits, const std::string& name, int64_t value) {
  const auto lower = [&](int64_t& field) {
    field = std::min(field, value);
    return Status();
  };
  if (value < 1) return invalid_input("--limit " + name + "=" + std::to_string(value) + ": expected at least 1");
  if (name == "memory_bytes") {
    limits.memory_free_bytes = std::min(limits.memory_free_bytes, value);
    return lower(limits.memory_bytes);
  }
  if (name == "memory_free_bytes") return lower(limits.memory_free_bytes);
  if (name == "l2_bytes") return lower(limits.l2_bytes);
  return invalid_input("--limit " + name + " means nothing on the CPU; expected memory_bytes, memory_free_bytes or l2_bytes");
}

}  // namespace

Status impose_limits(DeviceLimits& limits, const std::vector<std::pair<std::string, int64_t>>& imposed) {
  for (const auto& [name, value] : imposed) TESSERA_RETURN_IF_ERROR(impose(limits, name, value));
  return {};
}

Result<std::unique_ptr<Backend>> open_backend(const BackendOptions& options) {
  constexpr int kMaxThreads = 1024;
  if (options.threads < 0 || options.threads > kMaxThreads)
    return invalid_input("--threads is " + std::to_string(options.threads) + "; expected 1 to " +
                         std::to_string(kMaxThreads) + ", or 0 for the cores that are allowed");
  DeviceLimits limits = probe_limits(options.threads);
  TESSERA_RETURN_IF_ERROR(impose_limits(limits, options.limits));
  if (!options.device_limits.empty())
    return invalid_input("--device-limits " + options.device_limits + " describes a GPU; the device of this run is the CPU");
  TESSERA_ASSIGN_OR_RETURN(KernelSet kernels, choose_kernels(options.isa, cpu_features()));
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(limits, std::move(kernels)));
}

Result<std::unique_ptr<Sizing>> open_sizing(const DeviceLimits& limits) {
  return std::unique_ptr<Sizing>(std::make_unique<CpuSizing>(limits));
}

Precision CpuSizing::precision(DType compute) const {
  return {.weights = compute, .activation = compute, .residual = DType::kF32, .kv = compute};
}

size_t CpuSizing::weight_bytes(const LinearSpec& spec) const { return PackedLayout(spec).bytes; }

size_t CpuSizing::kernel_workspace_bytes(const WorkspaceShape&) const {
  return static_cast<size_t>(threads_) * Scratch::kBytes;
}

size_t CpuSizing::sample_workspace_bytes(int64_t rows, int64_t vocab) const { return sample_workspace(rows, vocab); }

CpuBackend::CpuBackend(const DeviceLimits& limits, KernelSet kernels)
    : limits_(limits),
      sizing_(limits),
      kernels_(std::move(kernels)),
      stream_(static_cast<int>(limits.multiprocessors), kernels_.leaf) {}

const KernelTable& CpuBackend::kernels() const {
  static const KernelTable kTable = {
      .device = "cpu",
      .norm = cpu::norm,
      .linear = cpu::linear,
      .epilogue = cpu::epilogue,
      .rope_angles = cpu::rope_angles,
      .qkv_to_cache = cpu::qkv_to_cache,
      .paged_attention = cpu::paged_attention,
      .tile_attention = cpu::tile_attention,
      .patch_embed = cpu::patch_embed,
      .pixel_shuffle = cpu::pixel_shuffle,
      .embed = cpu::embed,
      .gather_rows = cpu::gather_rows,
      .scatter_rows = cpu::scatter_rows,
      .copy_blocks = cpu::copy_blocks,
      .moe = cpu::moe,
      .sample = cpu::sample,
  };
  return kTable;
}

std::unique_ptr<Weight> CpuBackend::make_weight(const LinearSpec& spec, const WeightSource* source,
                                                Allocator& allocator, MemoryLine line, const std::string& name) {
  return pack_weight(stream_, spec, source, allocator, line, name);
}

void CpuBackend::reserve_workspace(const WorkspaceShape& shape, Allocator& allocator) {
  scratch_ = Buffer();
  scratch_ = allocator.allocate(sizing_.kernel_workspace_bytes(shape), MemoryLine::kActivations, "kernel workspace");
  char* memory = static_cast<char*>(scratch_.data());
  for (size_t t = 0; t < stream_.scratch.size() && memory; ++t)
    stream_.scratch[t].use(memory + t * Scratch::kBytes, Scratch::kBytes);
}

namespace {

/// A tensor's rows may be strided; host memory is contiguous.
template <class Copy>
void each_contiguous_part(const Tensor& tensor, const Copy& copy) {
  if (tensor.elements() == 0) return;
  if (tensor.contiguous()) return copy(static_cast<char*>(tensor.data), size_t{0}, tensor.bytes());
  const size_t row = static_cast<size_t>(tensor.row_elements()) * size_of(tensor.dtype);
  for (int64_t r = 0; r < tensor.rows(); ++r)
    copy(static_cast<char*>(tensor.slice(r, 1).data), static_cast<size_t>(r) * row, row);
}

}  // namespace

void CpuBackend::upload(const void* host, const Tensor& device) {
  each_contiguous_part(device, [&](char* at, size_t offset, size_t bytes) {
    std::memcpy(at, static_cast<const char*>(host) + offset, bytes);
  });
}

void CpuBackend::download(const Tensor& device, void* host) {
  each_contiguous_part(device, [&](char* at, size_t offset, size_t bytes) {
    std::memcpy(static_cast<char*>(host) + offset, at, bytes);
  });
}

void CpuBackend::fill_zero(const Tensor& device) {
  each_contiguous_part(device, [](char* at, size_t, size_t bytes) { std::memset(at, 0, bytes); });
}

std::vector<KernelChoice> CpuBackend::explain(DType compute) const {
  std::vector<KernelChoice> lines;
  const auto add = [&](const char* op, const KernelChoice& choice) {
    lines.push_back(choice);
    lines.back().op = op;
  };
  const KernelChoice& products = kernels_.products[element_of(compute)];
  const std::string suffix = std::string(" ") + dtype_name(compute);
  for (const char* op : {"linear", "moe", "patch_embed", "tile_attention", "paged_attention"})
    add((op + suffix).c_str(), products);
  for (const char* op : {"norm", "epilogue", "qkv_to_cache", "pixel_shuffle", "embed", "sample"})
    add(op, kernels_.rest);
  return lines;
}

void* Scratch::take_bytes(size_t bytes) {
  constexpr size_t kLine = 64;
  const size_t size = (bytes + kLine - 1) / kLine * kLine;
  if (used_ + size <= capacity_) {
    void* piece = memory_ + used_;
    used_ += size;
    return piece;
  }
  overflow_.emplace_back(size + kLine);
  char* data = overflow_.back().data();
  return data + (kLine - reinterpret_cast<size_t>(data) % kLine) % kLine;
}

}  // namespace tessera::cpu
