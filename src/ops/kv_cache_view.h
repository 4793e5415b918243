#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace tessera {

/// The form of a KV cache block: the element type is part of it. How K and V of one block are ordered inside its bytes
/// is the backend's own business (both kernels that touch it are its own).
struct KvLayout {
  DType dtype = DType::kBF16;
  int block_size = 16;  ///< tokens in a block
  int kv_heads = 0;     ///< of this rank
  int head_dim = 0;

  /// Bytes of one block in one layer: K and V.
  size_t block_bytes() const {
    return size_t{2} * static_cast<size_t>(block_size) * static_cast<size_t>(kv_heads) *
           static_cast<size_t>(head_dim) * size_of(dtype);
  }
};

/// One layer's blocks: block b occupies bytes [b * block_bytes, (b + 1) * block_bytes) from `base`.
struct KvView {
  KvLayout layout;
  void* base = nullptr;
  int64_t blocks = 0;
};

}  // namespace tessera
