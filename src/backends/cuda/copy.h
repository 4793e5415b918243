#pragma once

#include <cstddef>

#include "ops/context.h"

namespace tessera::cuda {

/// Copies a few KiB by a kernel, between device memory and pinned host memory in either direction. Requires: both ends and
/// `bytes` are multiples of 4.
void copy_words(Stream& stream, const void* from, void* to, size_t bytes);

}  // namespace tessera::cuda
