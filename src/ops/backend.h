#pragma once

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/allocator.h"
#include "core/device_limits.h"
#include "core/result.h"
#include "ops/context.h"
#include "ops/kernel_table.h"
#include "ops/weight.h"

namespace tessera {

/// The dtypes in which a backend computes for a compute dtype (`--dtype`). Small vectors (norm weights, biases, layer
/// scales) are f32 everywhere.
struct Precision {
  DType weights = DType::kBF16;
  DType activation = DType::kBF16;  ///< inputs and outputs of products
  DType residual = DType::kF32;     ///< the residual stream of language models, and of vision towers that ranks share
  DType vision_residual = DType::kF32;  ///< of a vision tower
  /// Products of a vision tower take the LayerNorm before them in their weight, where shapes allow it: LinearArgs::x_sums.
  bool folded_norms = false;
  DType kv = DType::kBF16;
};

/// What kernels may need besides their arguments; the largest step a model will run.
struct WorkspaceShape {
  int64_t max_tokens = 0;     ///< of a language step
  int64_t max_sequences = 0;
  int64_t max_kv = 0;
  int64_t vision_tokens = 0;  ///< rows of the largest vision pass
  int64_t max_features = 0;   ///< widest row of any product's output
  int64_t vocab = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
};

/// A backend's needs as pure functions of shapes and limits: the memory plan calls them where the device is absent.
class Sizing {
 public:
  virtual ~Sizing() = default;
  virtual Precision precision(DType compute) const = 0;
  virtual int kv_block_size() const { return 16; }
  /// Device memory for exchanges between `ranks` devices whose largest message has `message` bytes: what the collectives
  /// library holds for each peer, and, without peer access, two staging pieces.
  virtual size_t communication_bytes(int ranks, size_t message, bool peer_access) const {
    constexpr size_t kPerPeer = size_t{64} << 20;
    constexpr size_t kPiece = size_t{4} << 20;
    if (ranks <= 1) return 0;
    return static_cast<size_t>(ranks - 1) * kPerPeer + (peer_access ? 0 : 2 * (message < kPiece ? message : kPiece));
  }
  /// Bytes of the packed form.
  virtual size_t weight_bytes(const LinearSpec& spec) const = 0;
  /// Scratch that the backend's kernels hold (split attention, library workspaces), allocated once at start.
  virtual size_t kernel_workspace_bytes(const WorkspaceShape& shape) const = 0;
  virtual size_t sample_workspace_bytes(int64_t rows, int64_t vocab) const = 0;
  /// Pinned or other host-side staging for loading and for steps.
  virtual size_t staging_bytes() const { return 0; }
  /// Graphs' pool and the driver's own memory (context, modules, libraries).
  virtual size_t graph_bytes() const { return 0; }
  virtual size_t driver_bytes() const { return 0; }
};

/// One line of `tessera doctor`: which kernel serves an operator, and why; refused candidates with their reasons.
struct KernelChoice {
  std::string op;      ///< "linear bf16"
  std::string kernel;  ///< "avx512_bf16"
  std::string reason;
  std::vector<std::pair<std::string, std::string>> refused;  ///< candidate, reason
};

/// What a device can do at best, measured: the floors that benchmarks print are made of it. Zero: not measured.
struct DeviceSpeed {
  double matrix_flops = 0;      ///< multiply-adds of the compute dtype, as FLOP/s, on registers alone
  double read_bytes_per_s = 0;  ///< streaming from memory
};

/// A device with its memory, kernels and weights. One per rank. Thread rule: its stream is used by one thread at a
/// time. Everything made by a backend is destroyed before it.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual const DeviceLimits& limits() const = 0;
  virtual const Sizing& sizing() const = 0;
  virtual const KernelTable& kernels() const = 0;
  virtual Allocator& allocator() = 0;       ///< the device's memory
  virtual Allocator& host_allocator() = 0;  ///< memory that transfers quickly (pinned); plain memory on the CPU
  virtual Stream& stream() = 0;

  /// Packs a weight. Reads the source in bounded pieces, from several threads where that helps. With a counting
  /// allocator nothing is read (source may be null), only sizes are accounted. Throws OutOfMemory or DeviceError.
  virtual std::unique_ptr<Weight> make_weight(const LinearSpec& spec, const WeightSource* source,
                                              Allocator& allocator, MemoryLine line, const std::string& name) = 0;

  /// Allocates the kernels' scratch for steps up to `shape`, once, before the first step.
  virtual void reserve_workspace(const WorkspaceShape& shape, Allocator& allocator) = 0;

  /// Ordered with the stream's kernels. The host memory must stay until synchronize() (or the next step's upload).
  virtual void upload(const void* host, const Tensor& device) = 0;
  /// upload() of several contiguous pieces; where each hand-over costs more than the bytes, all go at once.
  struct Piece {
    const void* host = nullptr;
    void* device = nullptr;
    size_t bytes = 0;
  };
  virtual void upload_all(std::span<const Piece> pieces);
  virtual void download(const Tensor& device, void* host) = 0;
  /// The same into one of several places that lie `pitch` bytes apart: the one that `turn`, i32 [1] on the device, names when
  /// the stream gets there. So one capture serves steps that take turns with what the host reads. As here where the
  /// device's memory is the host's.
  virtual void download_in_turn(const Tensor& device, void* host, size_t pitch, const Tensor& turn);
  virtual void fill_zero(const Tensor& device) = 0;
  virtual void synchronize() = 0;

  /// Runs `record` on the stream. A backend with graphs captures it under `key` once and replays it afterwards: the
  /// work recorded for one key must be the same calls with the same addresses. A CPU just calls it. Ahead of it `up` goes up as
  /// by upload_all(); these pieces may be others in every run, but a key has some in each of its runs or in none.
  virtual void run_captured(uint64_t key, std::span<const Piece> up, const std::function<void()>& record);
  void run_captured(uint64_t key, const std::function<void()>& record) { run_captured(key, {}, record); }

  /// True when run_captured replays. The engine then rounds decode steps up to a few shapes (see StepShape).
  virtual bool captures() const { return false; }

  /// True when work that was handed over runs on while the host goes on. The engine then hands a step over before it knows the
  /// tokens of the one before.
  virtual bool asynchronous() const { return false; }

  virtual std::vector<KernelChoice> explain(DType compute) const = 0;

  /// Takes a fraction of a second.
  virtual DeviceSpeed measure_speed(DType compute) {
    (void)compute;
    return {};
  }

  /// Points of the stream's time, for costs that must be the device's and not those of handing work to it. mark() notes
  /// the point that the stream reaches after the work so far; seconds_between() waits for the later one. Marks: [0, kMarks).
  /// A device whose work is done when a call returns reads the clock, as here.
  virtual void mark(int which);
  virtual double seconds_between(int from, int to);
  static constexpr int kMarks = 8;

  /// The calling thread is going to use this backend. A thread other than the one that opened it calls this first.
  virtual void enter_thread() {}

  /// Whether the device failed for good (a kernel's fault, say): every further call of this process fails, too.
  virtual bool lost() { return false; }

  /// What this process has had of the device at most, everything included (context, libraries, graphs); 0: not measured.
  virtual int64_t peak_bytes() { return 0; }

  OpContext context() { return {.kernels = &kernels(), .stream = &stream(), .comm = nullptr, .rank = {}}; }

 private:
  std::array<double, kMarks> marks_{};  ///< seconds
};

/// A CountingAllocator-friendly f32 vector from a source of one row.
Buffer make_vector(Backend& backend, const WeightSource* source, int64_t count, Allocator& allocator, MemoryLine line,
                   const std::string& name);

}  // namespace tessera
