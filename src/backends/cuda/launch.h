#pragma once

#include <cuda_runtime.h>

#include <string>
#include <unordered_map>

#include "backends/cuda/handle.h"
#include "backends/cuda/plain/portable.h"
#include "backends/cuda_choice/kernel_choice.h"
#include "core/allocator.h"

namespace tessera::cuda {

class Library;

using StreamHandle = Handle<cudaStream_t, cudaStreamDestroy>;

/// Throws DeviceError with the place, CUDA's words, and the operator and the kernel handed over last.
void check(cudaError_t error, const char* what);

/// Scratch of one purpose. Made once by reserve_workspace; an operator that needs more (tests, rare shapes) gets a larger
/// piece, except while a graph is being captured.
class Scratch {
 public:
  ~Scratch();
  void reserve(Buffer buffer) { reserved_ = std::move(buffer); }
  void* get(size_t bytes, const char* what, bool capturing);
  /// What was reserved, or, where nothing was, as much as anybody asks for.
  size_t room() const { return reserved_.size() > 0 ? reserved_.size() : SIZE_MAX / 2; }

 private:
  Buffer reserved_;
  void* own_ = nullptr;
  size_t own_bytes_ = 0;
};

inline constexpr int kArrivals = 4096;

/// What every operator of one device shares.
struct Device {
  int index = 0;
  DeviceLimits limits;       ///< with --limit imposed
  bool imposed = false;
  bool tf32 = false;
  Library* library = nullptr;  ///< cuBLASLt, or null
  KernelPlan plans[3];         ///< by DType f32, bf16, f16
  Scratch library_scratch, product_scratch, operator_scratch;
  unsigned* arrived = nullptr;  ///< kArrivals zeros between launches, see gemm/split_sums.cuh

  const KernelPlan& plan(DType weights) const { return plans[static_cast<size_t>(weights)]; }
};

class CudaStream final : public Stream {
 public:
  CudaStream(Device& device, cudaStream_t handle) : device(device), handle(handle) {}
  Device& device;
  cudaStream_t handle;
  bool capturing = false;
  bool unsettled = false;  ///< a step's integers may still be on their way: the kernel ahead copies them (copy_pieces)
};

inline CudaStream& cuda_stream(Stream& stream) { return static_cast<CudaStream&>(stream); }

/// How a launch differs from the ordinary.
struct LaunchOptions {
  /// The kernel may start before the one ahead of it has ended (programmatic dependent launch). It must call
  /// wait_for_previous() before it touches anything that a kernel writes. Its blocks then lie beside the other kernel's: if they have
  /// shared memory, they ask for the largest part of a multiprocessor for it. Ignored below compute capability 9.0.
  bool overlap = false;
  /// It lets the next kernel start only behind its own wait. Behind copy_pieces() no other overlaps: the kernels after it read the step's
  /// integers without waiting for the kernels between.
  bool settles = false;
  unsigned threads_y = 1;  ///< second dimension of a block
  unsigned cluster = 1;    ///< neighbouring blocks that run together and reach each other's shared memory (9.0)
};

/// The one door: refuses what the (imposed) limits do not allow, raises a kernel's shared memory limit once, checks
/// the launch and remembers its name for the message of a failure that shows later.
void launch_with(CudaStream& stream, const char* name, Grid grid, int threads, size_t shared, const void* kernel,
                 void** arguments, LaunchOptions options);

/// Clusters of `cluster` blocks of a kernel that the device runs at once.
int64_t resident_clusters(const void* kernel, int threads, size_t shared, unsigned cluster);

template <class P>
void launch_fast(Stream& stream, const char* name, Grid grid, int threads, size_t shared, void (*kernel)(P),
                 P parameters, LaunchOptions options = {.overlap = true}) {
  void* arguments[] = {&parameters};
  launch_with(cuda_stream(stream), name, grid, threads, shared, reinterpret_cast<const void*>(kernel), arguments,
              options);
}

/// The first run of code that a kernel may rehearse (kRehearsal in fast.cuh): 0, or 1 where TESSERA_CUDA_REHEARSAL=0 leaves that out, for
/// checkers that report what a rehearsal reads while it is being written.
int first_run();

/// The kernel launched last by this process: what an asynchronous failure is about, or the one just before it.
const char* last_kernel();
/// Launches so far.
uint64_t launch_count();

}  // namespace tessera::cuda
