#include "backends/cuda/backend.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <sstream>

#include "backends/cuda/device_memory.h"
#include "backends/cuda/kernel_times.h"
#include "backends/cuda_choice/device_table.h"
#include "backends/cuda_choice/weight_layout.h"

namespace tessera::cuda {

void* DeviceAllocator::take(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: the allocator reports it
    return nullptr;
  }
  check(error, "cudaMalloc");
  return data;
}

void DeviceAllocator::give_back(void* data, size_t) { cudaFree(data); }

void* PinnedAllocator::take(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaHostAlloc(&data, bytes, cudaHostAllocPortable);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(error, "cudaHostAlloc");
  pieces_[static_cast<const char*>(data)] = bytes;
  return data;
}

void PinnedAllocator::give_back(void* data, size_t) {
  pieces_.erase(static_cast<const char*>(data));
  cudaFreeHost(data);
}

bool PinnedAllocator::owns(const void* data, size_t bytes) const {
  const auto* at = static_cast<const char*>(data);
  auto piece = pieces_.upper_bound(at);
  if (piece == pieces_.begin()) return false;
  --piece;
  return at + bytes <= piece->first + piece->second;
}

namespace {

int attribute(cudaDeviceAttr attr, int device) {
  int value = 0;
  cudaDeviceGetAttribute(&value, attr, device);
  return value;
}

DeviceLimits read_limits(int index) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  DeviceLimits l{.name = properties.name, .kind = "cuda"};
  l.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  l.memory_free_bytes = free_bytes(index, l.memory_bytes);
  l.shared_memory_per_block = static_cast<int64_t>(properties.sharedMemPerBlock);
  l.shared_memory_optin = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  l.registers_per_block = properties.regsPerBlock;
  l.max_threads_per_block = properties.maxThreadsPerBlock;
  l.warp_size = properties.warpSize;
  l.multiprocessors = properties.multiProcessorCount;
  l.l2_bytes = properties.l2CacheSize;
  l.clock_khz = attribute(cudaDevAttrClockRate, index);
  l.memory_clock_khz = attribute(cudaDevAttrMemoryClockRate, index);
  l.compute_capability = properties.major * 10 + properties.minor;
  l.tensor_cores_bf16 = l.compute_capability >= 80;
  l.wgmma = l.compute_capability == 90;
  l.peer_access = true;
  int count = 0;
  cudaGetDeviceCount(&count);
  for (int other = 0; other < count; ++other) {
    int can = 1;
    if (other != index) cudaDeviceCanAccessPeer(&can, index, other);
    l.peer_access = l.peer_access && can != 0;
  }
  return l;
}

/// "auto", "cuda", "cuda:1".
Result<int> device_index(const std::string& name) {
  const size_t colon = name.find(':');
  if (colon == std::string::npos) return 0;
  const std::string digits = name.substr(colon + 1);
  if (digits.empty() || digits.size() > 4 || digits.find_first_not_of("0123456789") != std::string::npos)
    return Status(StatusCode::kInvalidInput, "[cuda] --device is \"" + name + "\"; expected cuda or cuda:NUMBER");
  return std::stoi(digits);
}

/// TESSERA_CUDA_ARCHITECTURES is a list with blanks: "sm_90a compute_90".
std::vector<std::string> architectures() {
  std::istringstream words(TESSERA_CUDA_ARCHITECTURES);
  return {std::istream_iterator<std::string>(words), {}};
}

}  // namespace

namespace {

// The runtime's library inside this module says "insufficient" of a driver that is too old and of one that is absent.
std::string why_no_device(cudaError_t error) {
  if (error == cudaSuccess || error == cudaErrorNoDevice) return "the NVIDIA driver finds no device";
  if (error != cudaErrorInsufficientDriver) return std::string("the NVIDIA driver answers: ") + cudaGetErrorString(error);
  if (!::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) return "the NVIDIA driver is missing (libcuda.so.1 was not found)";
  return "the NVIDIA driver is older than CUDA 13 (580 or later is needed)";
}

std::vector<std::pair<std::string, std::string>> library_facts() {
  std::string why;
  const std::string path = Library::find(&why);
  return {{"cuBLASLt", path.empty() ? "missing: " + why : path}};
}

/// For the next replay of a graph whose kernel `copy` is that of copy_pieces().
void set_pieces(cudaGraphExec_t graph, cudaGraphNode_t copy, CopyPieces& pieces) {
  cudaKernelNodeParams kernel{};
  check(cudaGraphKernelNodeGetParams(copy, &kernel), "graph copy");
  void* arguments[] = {&pieces};
  kernel.gridDim.x = static_cast<unsigned>(pieces.count);
  kernel.kernelParams = arguments;
  check(cudaGraphExecKernelNodeSetParams(graph, copy, &kernel), "graph copy");
}

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

}  // namespace

std::vector<DeviceReport> find_devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();
    return {{.name = "cuda", .limits = {.kind = "cuda"}, .reason = why_no_device(error), .facts = library_facts(), .architectures = architectures()}};
  }
  int driver = 0;
  cudaDriverGetVersion(&driver);
  std::vector<DeviceReport> found;
  for (int i = 0; i < count; ++i) {
    DeviceReport& report = found.emplace_back();
    report.name = "cuda:" + std::to_string(i);
    report.architectures = architectures();
    report.facts = library_facts();
    report.facts.emplace_back("driver serves CUDA", version_text(driver));
    try {
      report.limits = read_limits(i);
      report.available = true;
    } catch (const std::exception& e) {
      report.reason = e.what();
    }
  }
  return found;
}

Result<std::unique_ptr<Backend>> CudaBackend::open(const BackendOptions& options) {
  std::unique_ptr<CudaBackend> backend(new CudaBackend);
  try {
    Status status = backend->start(options);
    if (!status.ok()) return status;
  } catch (const std::exception& e) {
    return Status(StatusCode::kInternal, e.what());
  }
  return std::unique_ptr<Backend>(std::move(backend));
}

Status CudaBackend::start(const BackendOptions& options) {
  const std::vector<DeviceReport> found = find_devices();
  TESSERA_ASSIGN_OR_RETURN(const int index, device_index(options.device));
  const bool none = found.size() == 1 && found[0].name == "cuda";
  if (none || static_cast<size_t>(index) >= found.size())
    return Status(StatusCode::kInvalidInput,
                  "[cuda] device " + std::to_string(index) + " is not there: " +
                      (none ? found[0].reason : std::to_string(found.size()) + " found") + "; give another --device");
  const DeviceReport& chosen = found[static_cast<size_t>(index)];
  if (!chosen.available) return Status(StatusCode::kInvalidInput, chosen.reason);
  free_at_start_ = chosen.limits.memory_free_bytes;
  check(cudaSetDevice(index), "cudaSetDevice");
  check(cudaStreamCreateWithFlags(stream_handle_.receive(), cudaStreamNonBlocking), "stream");

  check(cudaMalloc(arrived_.receive(), kArrivals * sizeof(unsigned)), "arrivals");
  check(cudaMemset(arrived_.get(), 0, kArrivals * sizeof(unsigned)), "arrivals");
  device_.arrived = static_cast<unsigned*>(arrived_.get());
  device_.index = index;
  device_.limits = chosen.limits;
  device_.tf32 = options.tf32;
  device_.imposed = !options.limits.empty() || !options.device_limits.empty();
  if (!options.device_limits.empty()) {
    TESSERA_ASSIGN_OR_RETURN(const DeviceLimits described, describe_device(options.device_limits));
    impose_description(device_.limits, described);
  }
  TESSERA_RETURN_IF_ERROR(impose_limits(device_.limits, options.limits));
  least_free_ = free_at_start_;
  library_ = Library::open(&library_missing_);
  device_.library = library_.get();
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16})
    device_.plans[static_cast<size_t>(dtype)] =
        choose_kernels({device_.limits, dtype, library_ != nullptr, device_.imposed});
  device_name_ = device_.limits.name;
  table_ = cuda_kernel_table(device_name_.c_str());
  sizing_ = std::make_unique<CudaSizing>(device_.limits);
  table_.folded_norms = sizing_->precision(DType::kBF16).folded_norms;
  stream_ = std::make_unique<CudaStream>(device_, stream_handle_.get());
  return {};
}

CudaBackend::~CudaBackend() {
  if (stream_handle_) cudaStreamSynchronize(stream_handle_.get());
}

std::unique_ptr<Weight> CudaBackend::make_weight(const LinearSpec& spec, const WeightSource* source,
                                                 Allocator& allocator, MemoryLine line, const std::string& name) {
  const PackedShape packed = packed_shape(spec);
  auto weight = std::make_unique<Weight>(spec, allocator.allocate(packed.bytes, line, name));
  if (!weight->data()) return weight;
  TESSERA_CHECK(source != nullptr, name + ": no source");
  check(cudaMemsetAsync(weight->data(), 0, packed.bytes, stream_handle_.get()), "weight padding");
  copy_rows(spec, *source, *weight);
  return weight;
}

// Two pinned pieces take turns: while one is copied to the device, readers fill the other.
void CudaBackend::copy_rows(const LinearSpec& spec, const WeightSource& source, const Weight& weight) {
  const PackedShape packed = packed_shape(spec);
  const bool gated = spec.use == WeightUse::kGated;
  const int64_t half = gated ? spec.rows / 2 : 0;
  const int64_t packed_rows = gated ? 2 * round_up(half, kGateGroup) : spec.rows;
  const size_t row_bytes = static_cast<size_t>(spec.cols) * size_of(spec.dtype);
  const size_t pitch = static_cast<size_t>(packed.cols) * size_of(spec.dtype);
  const size_t piece = std::max(kStagingPiece, 16 * row_bytes);
  for (int i = 0; i < 2; ++i) {
    if (staging_[i].size() < piece) {
      staging_[i] = {};
      staging_[i] = host_allocator_.allocate(piece, MemoryLine::kStaging, "weight staging");
    }
    if (!staging_free_[i])
      check(cudaEventCreateWithFlags(staging_free_[i].receive(), cudaEventDisableTiming), "event");
  }
  if (!readers_) readers_ = std::make_unique<ThreadPool>(std::clamp(available_cores(), 1, 8));

  const int64_t per_piece = static_cast<int64_t>(piece / row_bytes) / 16 * 16;
  int turn = 0;
  for (int64_t expert = 0; expert < spec.experts; ++expert)
    for (int64_t begin = 0; begin < packed_rows; begin += per_piece, turn ^= 1) {
      const int64_t count = std::min(per_piece, packed_rows - begin);
      char* host = static_cast<char*>(staging_[turn].data());
      check(cudaEventSynchronize(staging_free_[turn].get()), "staging");
      // A reader's item: a group of 8 rows of one kind when gated, else about a quarter of a MiB.
      const int64_t unit = gated ? kGateGroup : std::max<int64_t>(1, static_cast<int64_t>((256 << 10) / row_bytes));
      readers_->parallel_for((count + unit - 1) / unit, [&](int64_t item, int) {
        const int64_t row = begin + item * unit;
        int64_t from = row, rows = std::min(unit, begin + count - row);
        char* to = host + static_cast<size_t>(row - begin) * row_bytes;
        if (gated) {
          const int64_t j = row / (2 * kGateGroup) * kGateGroup;
          from = j + (row / kGateGroup % 2 ? half : 0);
          rows = std::min(kGateGroup, half - j);
          std::memset(to + static_cast<size_t>(rows) * row_bytes, 0, static_cast<size_t>(kGateGroup - rows) * row_bytes);
        }
        source.read(expert, from, rows, spec.dtype, to);
      });
      char* target = static_cast<char*>(weight.data()) + static_cast<size_t>(expert) * packed.expert_bytes +
                     static_cast<size_t>(begin) * pitch;
      check(cudaMemcpy2DAsync(target, pitch, host, row_bytes, row_bytes, static_cast<size_t>(count),
                              cudaMemcpyHostToDevice, stream_handle_.get()),
            "weight upload");
      check(cudaEventRecord(staging_free_[turn].get(), stream_handle_.get()), "staging");
    }
}

void CudaBackend::reserve_workspace(const WorkspaceShape& shape, Allocator& allocator) {
  const WorkspaceParts parts = workspace_parts(shape, device_.limits);
  auto take = [&](size_t bytes, const char* name) { return allocator.allocate(bytes, MemoryLine::kActivations, name); };
  device_.library_scratch.reserve(take(parts.library, "cuBLASLt workspace"));
  device_.product_scratch.reserve(take(parts.product, "raw products"));
  device_.operator_scratch.reserve(take(parts.op, "operator scratch"));
}

void CudaBackend::synchronize() { check(cudaStreamSynchronize(stream_handle_.get()), "synchronize"); }

// A key's first run is an ordinary one (it warms up what may not happen inside a capture), the second is captured. The copy of
// what goes up is a graph's first kernel, whose parameters each replay sets anew.
void CudaBackend::run_captured(uint64_t key, std::span<const Piece> up, const std::function<void()>& record) {
  CopyPieces pieces = upload_most(up);
  auto found = graphs_.find(key);
  const bool timed = KernelTimes::get() != nullptr;  // what is timed is not captured
  if (timed || (found == graphs_.end() && seen_.insert(key).second)) {
    copy_pieces(*stream_, pieces);
    return record();
  }
  if (!up.empty() && pieces.count == 0) pieces.add(nullptr, nullptr, 0);  // all have gone up already
  if (found == graphs_.end()) {
    if (graphs_.size() >= kMaxGraphs) drop_oldest_graph();
    found = graphs_.emplace(key, capture(up.empty() ? nullptr : &pieces, record)).first;
  } else if (found->second.copy) {
    set_pieces(found->second.ready.get(), found->second.copy, pieces);
  }
  found->second.last_use = ++replays_;
  check(cudaGraphLaunch(found->second.ready.get(), stream_handle_.get()), "graph launch");
}

CudaBackend::Captured CudaBackend::capture(const CopyPieces* up, const std::function<void()>& record) {
  Captured captured;
  check(cudaStreamBeginCapture(stream_handle_.get(), cudaStreamCaptureModeThreadLocal), "capture");
  stream_->capturing = true;
  try {
    if (up) copy_pieces(*stream_, *up);
    record();
  } catch (...) {
    stream_->capturing = false;
    cudaGraph_t dropped = nullptr;
    if (cudaStreamEndCapture(stream_handle_.get(), &dropped) == cudaSuccess && dropped) cudaGraphDestroy(dropped);
    cudaGetLastError();
    throw;
  }
  stream_->capturing = false;
  check(cudaStreamEndCapture(stream_handle_.get(), captured.graph.receive()), "capture");
  check(cudaGraphInstantiate(captured.ready.receive(), captured.graph.get(), 0), "graph");
  size_t first = 1;  // one stream: a chain of nodes
  if (up) check(cudaGraphGetRootNodes(captured.graph.get(), &captured.copy, &first), "graph");
  return captured;
}

void CudaBackend::drop_oldest_graph() {
  const auto oldest = std::min_element(graphs_.begin(), graphs_.end(), [](const auto& a, const auto& b) {
    return a.second.last_use < b.second.last_use;
  });
  synchronize();  // it may be running
  seen_.erase(oldest->first);
  graphs_.erase(oldest);
}

void CudaBackend::mark(int which) {
  EventHandle& event = marks_[which];
  if (!event) check(cudaEventCreate(event.receive()), "mark");
  check(cudaEventRecord(event.get(), stream_handle_.get()), "mark");
}

double CudaBackend::seconds_between(int from, int to) {
  check(cudaEventSynchronize(marks_[to].get()), "synchronize");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, marks_[from].get(), marks_[to].get()), "mark");
  return milliseconds * 1e-3;
}

void CudaBackend::enter_thread() { check(cudaSetDevice(device_.index), "cudaSetDevice"); }

// A fault stays: after it every call that waits for the device repeats the error. Others are over once they are told.
bool CudaBackend::lost() {
  cudaGetLastError();
  const bool lost = cudaDeviceSynchronize() != cudaSuccess;
  cudaGetLastError();
  return lost;
}

// Nothing of the device is taken or given back during a run but graphs, so that reading now and then finds the peak.
int64_t CudaBackend::peak_bytes() {
  enter_thread();
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  least_free_ = std::min(least_free_, static_cast<int64_t>(free));
  return free_at_start_ - least_free_;
}

std::vector<KernelChoice> CudaBackend::explain(DType compute) const {
  std::vector<KernelChoice> report;
  choose_kernels({device_.limits, compute, library_ != nullptr, device_.imposed}, &report);
  return report;
}

}  // namespace tessera::cuda
