#include <algorithm>

#include "backends/cuda/backend.h"
#include "backends/cuda/probe.h"
#include "ops/linear.h"

namespace tessera::cuda {
namespace {

constexpr int kWarmUps = 3;
constexpr int kRounds = 11;
constexpr int64_t kSide = 8192;                     // of the product: large enough that its launch does not count
constexpr size_t kReadBytes = size_t{2} << 30;      // much more than any cache holds

}  // namespace

// The median of single runs between events.
double CudaBackend::seconds_of(const std::function<void()>& work) {
  for (int i = 0; i < kWarmUps; ++i) work();
  std::vector<double> times;
  for (int i = 0; i < kRounds; ++i) {
    mark(0);
    work();
    mark(1);
    times.push_back(seconds_between(0, 1));
  }
  std::nth_element(times.begin(), times.begin() + kRounds / 2, times.end());
  return times[kRounds / 2];
}

// The library's product: what the machine can do, whatever this program's kernels or an imposed limit make of it.
double CudaBackend::product_flops(DType compute) {
  const auto bytes = static_cast<size_t>(kSide * kSide) * size_of(compute);
  Buffer x = allocator_.allocate(bytes, MemoryLine::kActivations, "probe");
  Buffer out = allocator_.allocate(bytes, MemoryLine::kActivations, "probe");
  const Weight weight({.rows = kSide, .cols = kSide, .dtype = compute},
                      allocator_.allocate(bytes, MemoryLine::kActivations, "probe"));
  const Tensor tx = x.tensor(compute, {kSide, kSide}), ty = out.tensor(compute, {kSide, kSide});
  fill_random(*stream_, tx, 1);
  fill_random(*stream_, Tensor(weight.data(), compute, {kSide, kSide}), 2);
  const double seconds = seconds_of([&] {
    if (library_)
      library_->run(*stream_, {.m = kSide, .n = kSide, .k = kSide, .dtype = compute, .a = tx.data, .lda = kSide,
                               .b = weight.data(), .ldb = kSide, .d = ty.data, .ldd = kSide, .out = compute});
    else
      linear(context(), {.x = tx, .weight = &weight, .out = ty});
  });
  return 2.0 * static_cast<double>(kSide * kSide) * static_cast<double>(kSide) / seconds;
}

// The better of reading alone and of copying (which counts what is read and what is written).
double CudaBackend::read_bytes_per_s() {
  Buffer from = allocator_.allocate(kReadBytes, MemoryLine::kActivations, "probe");
  Buffer to = allocator_.allocate(kReadBytes, MemoryLine::kActivations, "probe");
  fill_random(*stream_, from.tensor(DType::kU8, {static_cast<int64_t>(kReadBytes)}), 3);
  const double read = seconds_of([&] { read_once(*stream_, from.data(), kReadBytes); });
  const double copy = seconds_of([&] {
    check(cudaMemcpyAsync(to.data(), from.data(), kReadBytes, cudaMemcpyDeviceToDevice, stream_handle_.get()), "probe");
  });
  const auto bytes = static_cast<double>(kReadBytes);
  return std::max(bytes / read, 2 * bytes / copy);
}

DeviceSpeed CudaBackend::measure_speed(DType compute) {
  return {.matrix_flops = product_flops(compute), .read_bytes_per_s = read_bytes_per_s()};
}

}  // namespace tessera::cuda
