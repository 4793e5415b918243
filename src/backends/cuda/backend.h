#pragma once

#include <map>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "backends/cuda/copy.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/library.h"
#include "backends/cuda_choice/sizing.h"
#include "core/thread_pool.h"
#include "ops/backend.h"
#include "ops/device.h"

namespace tessera::cuda {

/// cudaMalloc; addresses stay until the buffer goes.
class DeviceAllocator final : public Allocator {
 protected:
  void* take(size_t bytes) override;
  void give_back(void* data, size_t bytes) override;
};

/// Page-locked host memory, for copies at the bus's speed. Kernels can read and write it, too.
class PinnedAllocator final : public Allocator {
 public:
  /// Whether these bytes are from here.
  bool owns(const void* data, size_t bytes) const;

 protected:
  void* take(size_t bytes) override;
  void give_back(void* data, size_t bytes) override;

 private:
  std::map<const char*, size_t> pieces_;  ///< bytes of each
};

/// One CUDA device. See ops/backend.h for the contract of each member.
class CudaBackend final : public Backend {
 public:
  static Result<std::unique_ptr<Backend>> open(const BackendOptions& options);
  ~CudaBackend() override;

  const DeviceLimits& limits() const override { return device_.limits; }
  const Sizing& sizing() const override { return *sizing_; }
  const KernelTable& kernels() const override { return table_; }
  Allocator& allocator() override { return allocator_; }
  Allocator& host_allocator() override { return host_allocator_; }
  Stream& stream() override { return *stream_; }

  std::unique_ptr<Weight> make_weight(const LinearSpec& spec, const WeightSource* source, Allocator& allocator,
                                      MemoryLine line, const std::string& name) override;
  void reserve_workspace(const WorkspaceShape& shape, Allocator& allocator) override;

  void upload(const void* host, const Tensor& device) override;
  void upload_all(std::span<const Piece> pieces) override;
  void download(const Tensor& device, void* host) override;
  void download_in_turn(const Tensor& device, void* host, size_t pitch, const Tensor& turn) override;
  void fill_zero(const Tensor& device) override;
  void synchronize() override;
  using Backend::run_captured;
  void run_captured(uint64_t key, std::span<const Piece> up, const std::function<void()>& record) override;
  bool captures() const override { return true; }
  bool asynchronous() const override { return true; }
  void mark(int which) override;
  double seconds_between(int from, int to) override;
  void enter_thread() override;
  bool lost() override;
  int64_t peak_bytes() override;
  std::vector<KernelChoice> explain(DType compute) const override;
  DeviceSpeed measure_speed(DType compute) override;

 private:
  using GraphHandle = Handle<cudaGraph_t, cudaGraphDestroy>;
  using ReadyGraphHandle = Handle<cudaGraphExec_t, cudaGraphExecDestroy>;
  using EventHandle = Handle<cudaEvent_t, cudaEventDestroy>;
  struct Captured {
    GraphHandle graph;
    ReadyGraphHandle ready;
    cudaGraphNode_t copy = nullptr;  ///< of what goes up, its first kernel, or null
    uint64_t last_use = 0;           ///< in replays
  };

  CudaBackend() = default;
  Status start(const BackendOptions& options);
  void copy_rows(const LinearSpec& spec, const WeightSource& source, const Weight& weight);
  bool by_kernel(const Piece& piece) const;
  CopyPieces upload_most(std::span<const Piece> pieces);
  Captured capture(const CopyPieces* up, const std::function<void()>& record);
  void drop_oldest_graph();
  double seconds_of(const std::function<void()>& work);
  double product_flops(DType compute);
  double read_bytes_per_s();

  DeviceAllocator allocator_;
  PinnedAllocator host_allocator_;
  StreamHandle stream_handle_;
  Handle<void*, cudaFree> arrived_;
  std::unique_ptr<Library> library_;
  std::string library_missing_;
  Device device_;
  std::string device_name_;
  KernelTable table_;
  std::unique_ptr<CudaSizing> sizing_;
  std::unique_ptr<CudaStream> stream_;
  std::unordered_map<uint64_t, Captured> graphs_;  ///< at most kMaxGraphs
  std::unordered_set<uint64_t> seen_;              ///< keys that have run once, uncaptured
  uint64_t replays_ = 0;
  EventHandle marks_[kMarks];
  int64_t free_at_start_ = 0;  ///< bytes, before this process had a context
  int64_t least_free_ = 0;
  Buffer staging_[2];
  EventHandle staging_free_[2];
  std::unique_ptr<ThreadPool> readers_;
};

/// The devices of this machine, or one report that says why there are none.
std::vector<DeviceReport> find_devices();

/// The operators with more than one kernel, over the plain ones. See table.cc.
KernelTable cuda_kernel_table(const char* device);

}  // namespace tessera::cuda
