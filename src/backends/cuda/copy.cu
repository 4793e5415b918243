#include "backends/cuda/copy.h"

#include "backends/cuda/fast.cuh"
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
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < p.count) p.to[(p.turn ? *p.turn * p.pitch : 0) + i] = p.from[i];
}

constexpr int kPieceThreads = 1024;

// A block a piece. Loads of several words are on their way before the first is stored: each takes a microsecond over the bus.
TESSERA_KERNEL(kPieceThreads) copy_pieces_kernel(CopyPieces p) {
  let_next_start();
  const CopyPieces::Piece piece = p.pieces[blockIdx.x];
  constexpr int kAtOnce = 4;
  for (int64_t first = threadIdx.x; first < piece.count; first += kAtOnce * kPieceThreads) {
    uint32_t words[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (first + i * kPieceThreads < piece.count) words[i] = piece.from[first + i * kPieceThreads];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (first + i * kPieceThreads < piece.count) piece.to[first + i * kPieceThreads] = words[i];
  }
}

}  // namespace

void copy_pieces(Stream& stream, const CopyPieces& pieces) {
  if (pieces.count == 0) return;
  launch_fast(stream, "copy_pieces", {static_cast<unsigned>(pieces.count)}, kPieceThreads, 0, copy_pieces_kernel, pieces, {});
  cuda_stream(stream).unsettled = true;
}

void copy_words(Stream& stream, const void* from, void* to, size_t bytes, CopyTurn turn) {
  const auto count = static_cast<int64_t>(bytes / sizeof(uint32_t));
  launch_fast(stream, "copy_words", {plain::blocks_for(count, kThreads)}, kThreads, 0, copy_words_kernel,
              CopyWordsParams{static_cast<const uint32_t*>(from), static_cast<uint32_t*>(to), count, turn.turn,
                              static_cast<int64_t>(turn.pitch / sizeof(uint32_t))});
}

}  // namespace tessera::cuda
