#pragma once

#include <cstdint>

#include "backends/cuda/plain/portable.h"
#include "ops/kv_cache_view.h"

namespace tessera::cuda {

/// Inside a KV block: K then V, each [kv_heads, block_size, head_dim], so that one head's keys of a block are one
/// contiguous piece (16 x 128 bf16: 4 KB) for attention's vector loads.
struct KvElements {
  void* base = nullptr;
  int64_t block_elements = 0;  ///< K and V
  int block_size = 0;
  int head_dim = 0;
  DType dtype = DType::kBF16;

  /// Element index of key (or value) 0 dimension 0 of a head at a slot (block * block_size + offset).
  TESSERA_DEVICE int64_t index(int64_t slot, int head, bool value) const {
    const int64_t block = slot / block_size;
    const int64_t offset = slot % block_size;
    return block * block_elements + (value ? block_elements / 2 : 0) +
           (static_cast<int64_t>(head) * block_size + offset) * head_dim;
  }
};

inline KvElements kv_elements(const KvView& kv) {
  return {kv.base, static_cast<int64_t>(kv.layout.block_bytes() / size_of(kv.layout.dtype)), kv.layout.block_size,
          kv.layout.head_dim, kv.layout.dtype};
}

}  // namespace tessera::cuda
