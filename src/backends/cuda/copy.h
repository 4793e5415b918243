#pragma once

#include <cstddef>

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

}  // namespace tessera::cuda
