#include "backends/cuda/kernel_times.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "backends/cuda/launch.h"

namespace tessera::cuda {
namespace {

struct Span {
  const char* name;
  cudaEvent_t begin, end;
};

struct Times {
  cudaEvent_t open = nullptr;
  std::vector<Span> spans;
};

Times& times() {
  static Times* const kTimes = new Times;  // outlives the report at exit
  return *kTimes;
}

cudaEvent_t mark(cudaStream_t stream) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "event");
  check(cudaEventRecord(event, stream), "event");
  return event;
}

void report() {
  struct Sum {
    int count = 0;
    double ms = 0;
  };
  std::map<std::string, Sum> sums;
  double all = 0;
  for (const Span& span : times().spans) {
    float ms = 0;
    if (cudaEventElapsedTime(&ms, span.begin, span.end) != cudaSuccess) continue;
    Sum& sum = sums[span.name];
    ++sum.count;
    sum.ms += static_cast<double>(ms);
    all += static_cast<double>(ms);
  }
  std::vector<std::pair<std::string, Sum>> rows(sums.begin(), sums.end());
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
  for (const auto& [name, sum] : rows)
    std::fprintf(stderr, "%-28s %7d launches %10.3f ms %8.2f us each %5.1f %%\n", name.c_str(), sum.count, sum.ms,
                 1e3 * sum.ms / sum.count, 100 * sum.ms / all);
}

}  // namespace

KernelTimes* KernelTimes::get() {
  static KernelTimes* const kWanted = [] {
    const char* value = std::getenv("TESSERA_CUDA_TIMES");
    if (!value || *value != '1') return static_cast<KernelTimes*>(nullptr);
    std::atexit(report);
    return new KernelTimes;
  }();
  return kWanted;
}

void KernelTimes::begin(cudaStream_t stream) { times().open = mark(stream); }

void KernelTimes::end(const char* name, cudaStream_t stream) { times().spans.push_back({name, times().open, mark(stream)}); }

}  // namespace tessera::cuda
