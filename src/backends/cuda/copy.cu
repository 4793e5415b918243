#include "backends/cuda/copy.h"

#include "backends/cuda/launch.h"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;

struct CopyWordsParams {
  const uint32_t* from;
  uint32_t* to;
  int64_t count;
  const int* turn;
  int64_t pitch;  ///< words
};

// One word a thread: reads over the bus are as parallel as they can be.
TESSERA_KERNEL(kThreads) copy_words_kernel(CopyWordsParams p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < p.count) p.to[(p.turn ? *p.turn * p.pitch : 0) + i] = p.from[i];
}

}  // namespace

void copy_words(Stream& stream, const void* from, void* to, size_t bytes, CopyTurn turn) {
  const auto count = static_cast<int64_t>(bytes / sizeof(uint32_t));
  launch_fast(stream, "copy_words", {plain::blocks_for(count, kThreads)}, kThreads, 0, copy_words_kernel,
              CopyWordsParams{static_cast<const uint32_t*>(from), static_cast<uint32_t*>(to), count, turn.turn,
                              static_cast<int64_t>(turn.pitch / sizeof(uint32_t))},
              {});
}

}  // namespace tessera::cuda
