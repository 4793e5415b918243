#include "backends/cuda/device_memory.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

namespace tessera::cuda {
namespace {

// The few names of nvml.h that are used; its ABI is stable, and the header is not part of every toolkit.
struct ManagedDevice;
struct ManagedMemory {
  unsigned long long total, free, used;
};
using Init = int (*)();
using ByBusId = int (*)(const char*, ManagedDevice**);
using MemoryInfo = int (*)(ManagedDevice*, ManagedMemory*);

}  // namespace

int64_t free_bytes(int device, int64_t otherwise) {
  static void* const kLibrary = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!kLibrary) return otherwise;
  const auto init = reinterpret_cast<Init>(::dlsym(kLibrary, "nvmlInit_v2"));
  const auto by_bus_id = reinterpret_cast<ByBusId>(::dlsym(kLibrary, "nvmlDeviceGetHandleByPciBusId_v2"));
  const auto memory_info = reinterpret_cast<MemoryInfo>(::dlsym(kLibrary, "nvmlDeviceGetMemoryInfo"));
  if (!init || !by_bus_id || !memory_info || init() != 0) return otherwise;
  char bus[32] = {};
  ManagedDevice* managed = nullptr;
  ManagedMemory memory{};
  if (cudaDeviceGetPCIBusId(bus, sizeof bus, device) != cudaSuccess || by_bus_id(bus, &managed) != 0 ||
      memory_info(managed, &memory) != 0)
    return otherwise;
  return static_cast<int64_t>(memory.free);
}

}  // namespace tessera::cuda
