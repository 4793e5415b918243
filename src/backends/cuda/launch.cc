#include "backends/cuda/launch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "backends/cuda/kernel_times.h"

namespace tessera::cuda {
namespace {

std::atomic<const char*> last_name{"none"}, last_op{"none"};
std::atomic<uint64_t> launches{0};

/// Raises the dynamic shared memory of a kernel once for each size above what it has had.
void allow_shared(const void* kernel, size_t shared, const char* name) {
  static std::mutex mutex;
  static std::unordered_map<const void*, size_t> allowed;
  std::lock_guard lock(mutex);
  size_t& had = allowed[kernel];
  if (shared <= had) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), name);
  had = shared;
}

/// A multiprocessor changes its split between shared memory and cache only while no block lies there, and the driver takes the least that
/// serves one kernel: blocks of the next would not find the room that is left. Sets the largest split once for each kernel.
void prefer_shared(const void* kernel, const char* name) {
  static std::mutex mutex;
  static std::unordered_set<const void*> preferring;
  std::lock_guard lock(mutex);
  if (!preferring.insert(kernel).second) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared), name);
}

/// Clusters of more than 8 blocks are not portable: a kernel must be allowed to have them.
void allow_cluster(const void* kernel, unsigned cluster, const char* name) {
  constexpr unsigned kPortable = 8;
  if (cluster > kPortable) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
}

/// TESSERA_CUDA_CHECK=1 waits for every kernel, so that a failure names the right one.
bool checks_each_launch() {
  static const bool kChecks = [] {
    const char* value = std::getenv("TESSERA_CUDA_CHECK");
    return value && *value == '1';
  }();
  return kChecks;
}

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw DeviceError(std::string("[cuda] ") + what + ": " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) +
                    "); the last operator was " + last_op.load(std::memory_order_relaxed) + ", its kernel " + last_kernel());
}

const char* last_kernel() { return last_name.load(std::memory_order_relaxed); }
uint64_t launch_count() { return launches.load(std::memory_order_relaxed); }

Scratch::~Scratch() {
  if (own_) cudaFree(own_);
}

void* Scratch::get(size_t bytes, const char* what, bool capturing) {
  if (bytes <= reserved_.size()) return reserved_.data();
  if (bytes <= own_bytes_) return own_;
  if (capturing)
    throw DeviceError(std::string("[") + what + "] needs " + std::to_string(bytes) + " bytes of scratch; " +
                      std::to_string(reserved_.size()) + " were reserved, and none can be made inside a graph");
  check(cudaDeviceSynchronize(), what);
  if (own_) check(cudaFree(std::exchange(own_, nullptr)), what);
  own_bytes_ = 0;
  check(cudaMalloc(&own_, bytes), what);
  own_bytes_ = bytes;
  return own_;
}

void* operator_scratch(Stream& stream, size_t bytes, const char* op) {
  CudaStream& s = cuda_stream(stream);
  return s.device.operator_scratch.get(bytes, op, s.capturing);
}

int first_run() {
  static const int kFirst = [] {
    const char* value = std::getenv("TESSERA_CUDA_REHEARSAL");
    return value && *value == '0' ? 1 : 0;
  }();
  return kFirst;
}

void launch_with(CudaStream& stream, const char* name, Grid grid, int threads, size_t shared, const void* kernel,
                 void** arguments, LaunchOptions options) {
  const DeviceLimits& limits = stream.device.limits;
  const auto allowed = static_cast<size_t>(std::max(limits.shared_memory_per_block, limits.shared_memory_optin));
  if (shared > allowed)
    throw DeviceError(std::string("[") + name + "] needs " + std::to_string(shared) +
                      " bytes of shared memory a block; the limit is " + std::to_string(allowed));
  if (shared > 49152) allow_shared(kernel, shared, name);
  allow_cluster(kernel, options.cluster, name);
  last_name.store(name, std::memory_order_relaxed);
  last_op.store(stream.op, std::memory_order_relaxed);
  launches.fetch_add(1, std::memory_order_relaxed);

  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(static_cast<unsigned>(threads), options.threads_y);
  config.dynamicSmemBytes = shared;
  config.stream = stream.handle;
  cudaLaunchAttribute attributes[2]{};
  config.attrs = attributes;
  const bool unsettled = std::exchange(stream.unsettled, false);
  if (options.overlap && limits.compute_capability >= 90 && (!unsettled || options.settles)) {
    if (shared > 0) prefer_shared(kernel, name);
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  if (options.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {options.cluster, 1, 1};
  }
  KernelTimes* const times = stream.capturing ? nullptr : KernelTimes::get();
  if (times) times->begin(stream.handle);
  check(cudaLaunchKernelExC(&config, kernel, arguments), name);
  if (times) times->end(name, stream.handle);
  if (checks_each_launch() && !stream.capturing) check(cudaStreamSynchronize(stream.handle), name);
}

int64_t resident_clusters(const void* kernel, int threads, size_t shared, unsigned cluster) {
  allow_shared(kernel, shared, "resident clusters");
  allow_cluster(kernel, cluster, "resident clusters");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(cluster);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {cluster, 1, 1};
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  check(cudaOccupancyMaxActiveClusters(&count, kernel, &config), "resident clusters");
  return count;
}

void launch_raw(Stream& stream, const char* name, Grid grid, int threads, size_t shared, const void* kernel,
                void** arguments) {
  launch_with(cuda_stream(stream), name, grid, threads, shared, kernel, arguments, {});
}

}  // namespace tessera::cuda
