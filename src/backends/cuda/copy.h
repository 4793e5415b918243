#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/context.h"

namespace tessera::cuda {

/// Which of several places a copy goes to: *turn * pitch bytes behind the first. Without a turn, the first.
struct CopyTurn {
  const int* turn = nullptr;  ///< device memory
  size_t pitch = 0;
};

/// Copies a few KiB by a kernel, between device memory and pinned host memory in either direction. Requires: both ends,
/// `bytes` and the pitch are multiples of 4.
void copy_words(Stream& stream, const void* from, void* to, size_t bytes, CopyTurn turn = {});

inline constexpr int kMaxCopyPieces = 128;

/// Copies as those of copy_words(), made by one kernel: the pieces travel in its parameters.
struct CopyPieces {
  struct Piece {
    const uint32_t* from;
    uint32_t* to;
    int64_t count;  ///< words
  };
  Piece pieces[kMaxCopyPieces];
  int count = 0;

  void add(const void* from, void* to, size_t bytes) {
    pieces[count++] = {static_cast<const uint32_t*>(from), static_cast<uint32_t*>(to), static_cast<int64_t>(bytes / sizeof(uint32_t))};
  }
};

void copy_pieces(Stream& stream, const CopyPieces& pieces);

}  // namespace tessera::cuda
