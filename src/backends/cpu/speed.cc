#include <algorithm>
#include <chrono>
#include <vector>

#include "backends/cpu/cpu_backend.h"

namespace tessera::cpu {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// All threads multiply at once; the best of several tries, each a few milliseconds.
double matrix_flops(CpuStream& stream, const ProductKernels& kernels) {
  if (!kernels.peak) return 0;
  constexpr int64_t kRounds = 100000;
  constexpr int kTries = 8;
  const int threads = stream.pool.threads();
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    std::vector<double> done(static_cast<size_t>(threads));
    const auto begin = std::chrono::steady_clock::now();
    stream.pool.parallel_for(threads, [&](int64_t item, int) { done[static_cast<size_t>(item)] = kernels.peak(kRounds); });
    const double elapsed = seconds_since(begin);
    double flops = 0;
    for (double d : done) flops += d;
    best = std::max(best, flops / elapsed);
  }
  return best;
}

/// Sums a buffer far larger than the caches, each thread its pieces.
double read_bandwidth(CpuStream& stream, Allocator& allocator) {
  constexpr size_t kBytes = size_t{512} << 20;
  constexpr size_t kPiece = size_t{1} << 20;
  constexpr int kTries = 5;
  const Buffer buffer = allocator.allocate(kBytes, MemoryLine::kStaging, "bandwidth probe");
  const auto* words = static_cast<const uint64_t*>(buffer.data());
  const auto pieces = static_cast<int64_t>(kBytes / kPiece);
  stream.pool.parallel_for(pieces, [&](int64_t piece, int) {
    std::fill_n(static_cast<uint64_t*>(buffer.data()) + static_cast<size_t>(piece) * kPiece / 8, kPiece / 8, uint64_t{1});
  });
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    stream.pool.parallel_for(pieces, [&](int64_t piece, int) {
      // Four streams at a time, as products with one row read four panels: one stream leaves memory channels idle.
      constexpr size_t kStreams = 4, kStream = kPiece / 8 / kStreams;
      const uint64_t* p = words + static_cast<size_t>(piece) * kPiece / 8;
      uint64_t sum[8] = {};
      for (size_t w = 0; w < kStream; w += 8)
        for (size_t s = 0; s < kStreams; ++s) {
          const uint64_t* line = p + s * kStream + w;
          __builtin_prefetch(line + 256);
          for (size_t j = 0; j < 8; ++j) sum[j] += line[j];
        }
      volatile uint64_t sink = sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
      (void)sink;
    });
    best = std::max(best, static_cast<double>(kBytes) / seconds_since(begin));
  }
  return best;
}

}  // namespace

DeviceSpeed CpuBackend::measure_speed(DType compute) {
  DeviceSpeed speed;
  for (const ProductKernels& kernels : available_products(element_of(compute), cpu_features()))
    speed.matrix_flops = std::max(speed.matrix_flops, matrix_flops(stream_, kernels));
  speed.read_bytes_per_s = read_bandwidth(stream_, host_allocator_);
  return speed;
}

}  // namespace tessera::cpu
