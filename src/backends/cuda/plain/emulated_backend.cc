// The plain family as a module of its own, with the CPU's emulation in place of a device: the operator suites run on it
// wherever they run on a GPU (TESSERA_CUDA_MODULE=libtessera_emulated.so, device "cuda"). Weights and KV blocks lie as
// on a GPU. TESSERA_EMULATED_LANES=64 makes warps of 64.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "backends/cuda/plain/plain.h"
#include "backends/cuda/plain/portable.h"
#include "backends/cuda_choice/kernel_choice.h"
#include "backends/cuda_choice/module_entry.h"
#include "backends/cuda_choice/sizing.h"
#include "backends/cuda_choice/weight_layout.h"

namespace tessera::cuda {
namespace {

class HostAllocator final : public Allocator {
 protected:
  void* take(size_t bytes) override { return std::aligned_alloc(kAlignment, bytes); }
  void give_back(void* data, size_t) override { std::free(data); }
};

DeviceLimits emulated_limits() {
  const char* lanes = std::getenv("TESSERA_EMULATED_LANES");
  return {.name = "emulated", .kind = "cuda", .memory_bytes = int64_t{1} << 30, .memory_free_bytes = int64_t{1} << 30,
          .shared_memory_per_block = 49152, .shared_memory_optin = 49152, .max_threads_per_block = 1024,
          .warp_size = lanes && std::atoi(lanes) == 64 ? 64 : 32, .multiprocessors = 1};
}

struct EmulatedStream final : Stream {
  std::vector<char> scratch;
};

class EmulatedBackend final : public Backend {
 public:
  EmulatedBackend() : limits_(emulated_limits()), sizing_(limits_), table_(plain::kernel_table("emulated")) {}

  const DeviceLimits& limits() const override { return limits_; }
  const Sizing& sizing() const override { return sizing_; }
  const KernelTable& kernels() const override { return table_; }
  Allocator& allocator() override { return allocator_; }
  Allocator& host_allocator() override { return allocator_; }
  Stream& stream() override {
    emulation::set_warp_lanes(static_cast<int>(limits_.warp_size));
    return stream_;
  }

  std::unique_ptr<Weight> make_weight(const LinearSpec& spec, const WeightSource* source, Allocator& allocator,
                                      MemoryLine line, const std::string& name) override {
    const PackedShape packed = packed_shape(spec);
    auto weight = std::make_unique<Weight>(spec, allocator.allocate(packed.bytes, line, name));
    if (!weight->data()) return weight;
    std::memset(weight->data(), 0, packed.bytes);
    const bool gated = spec.use == WeightUse::kGated;
    for (int64_t e = 0; e < spec.experts; ++e)
      for (int64_t r = 0; r < spec.rows; ++r) {
        const int64_t at = gated ? gated_row(r, spec.rows / 2) : r;
        source->read(e, r, 1, spec.dtype,
                     static_cast<char*>(weight->data()) + static_cast<size_t>(e) * packed.expert_bytes +
                         static_cast<size_t>(at * packed.cols) * size_of(spec.dtype));
      }
    return weight;
  }
  void reserve_workspace(const WorkspaceShape&, Allocator&) override {}

  void upload(const void* host, const Tensor& device) override { copy(device, const_cast<void*>(host), true); }
  void download(const Tensor& device, void* host) override { copy(device, host, false); }
  void fill_zero(const Tensor& device) override { std::memset(device.data, 0, device.bytes()); }
  void synchronize() override {}

  std::vector<KernelChoice> explain(DType compute) const override {
    std::vector<KernelChoice> report;
    choose_kernels({.limits = limits_, .weights = compute, .cublaslt = false, .imposed = true}, &report);
    return report;
  }

 private:
  static void copy(const Tensor& t, void* host, bool up) {
    const size_t row = static_cast<size_t>(t.row_elements()) * size_of(t.dtype);
    for (int64_t r = 0; r < t.rows(); ++r) {
      char* device = static_cast<char*>(t.data) + static_cast<size_t>(r * t.row_stride) * size_of(t.dtype);
      char* other = static_cast<char*>(host) + static_cast<size_t>(r) * row;
      up ? std::memcpy(device, other, row) : std::memcpy(other, device, row);
    }
  }

  DeviceLimits limits_;
  HostAllocator allocator_;
  CudaSizing sizing_;
  KernelTable table_;
  EmulatedStream stream_;
};

std::vector<DeviceReport> discover() {
  return {{.name = "cuda:0", .available = true, .limits = emulated_limits(), .architectures = {"emulated"}}};
}

Result<std::unique_ptr<Backend>> open(const BackendOptions&) {
  return std::unique_ptr<Backend>(std::make_unique<EmulatedBackend>());
}

const CudaModule kModule = {.discover = discover, .open = open};

}  // namespace

void* operator_scratch(Stream& stream, size_t bytes, const char*) {
  auto& scratch = static_cast<EmulatedStream&>(stream).scratch;
  if (scratch.size() < bytes) scratch.resize(bytes);
  return scratch.data();
}

}  // namespace tessera::cuda

extern "C" const tessera::CudaModule* tessera_cuda_module(int abi) {
  return abi == tessera::cuda::kModuleAbi ? &tessera::cuda::kModule : nullptr;
}
