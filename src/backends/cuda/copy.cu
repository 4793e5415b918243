#include "backends/cuda/copy.h"

#include "backends/cuda/launch.h"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;

struct CopyWordsParams {
  const uint32_t* from;
  uint32_t* to;
  int64_t count;
};

// One word a thread: reads over the bus are as parallel as they can be.
TESSERA_KERNEL(kThreads) copy_words_kernel(CopyWordsParams p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < p.count) p.to[i] = p.from[i];
}

}  // namespace

void copy_words(Stream& stream, const void* from, void* to, size_t bytes) {
  const auto count = static_cast<int64_t>(bytes / sizeof(uint32_t));
  launch_fast(stream, "copy_words", {plain::blocks_for(count, kThreads)}, kThreads, 0, copy_words_kernel,
              CopyWordsParams{static_cast<const uint32_t*>(from), static_cast<uint32_t*>(to), count}, {});
}

}  // namespace tessera::cuda
