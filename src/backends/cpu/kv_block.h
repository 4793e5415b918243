#pragma once

#include <cstdint>

#include "backends/cpu/cpu_stream.h"
#include "ops/kv_cache_view.h"

namespace tessera::cpu {

/// The order inside a KV block's bytes, so that the products read it as panels. Per kv head, first K, then V:
///   K  bf16 [head_dim / 2][block_size][2], else [head_dim][block_size]
///   V  bf16 [block_size / 2][head_dim][2], else [block_size][head_dim]
struct KvBlockOrder {
  explicit KvBlockOrder(const KvLayout& layout)
      : head_dim(layout.head_dim),
        block_size(layout.block_size),
        element(static_cast<int64_t>(size_of(layout.dtype))),
        pair(layout.dtype == DType::kBF16 ? 2 : 1),
        type(element_of(layout.dtype)) {
    TESSERA_CHECK(block_size % 2 == 0, "[kv cache] block size " + std::to_string(block_size) +
                                           " is odd; the CPU needs an even one");
  }

  int64_t head_dim, block_size, element, pair;
  Element type;

  int64_t part_bytes() const { return head_dim * block_size * element; }  ///< K or V of one head
  int64_t k_stride() const { return block_size * element * pair; }
  int64_t v_stride() const { return head_dim * element * pair; }

  char* k(const KvView& kv, int64_t block, int64_t head) const {
    return static_cast<char*>(kv.base) + block * static_cast<int64_t>(kv.layout.block_bytes()) + head * 2 * part_bytes();
  }
  char* v(const KvView& kv, int64_t block, int64_t head) const { return k(kv, block, head) + part_bytes(); }

  /// Element index of (token in block, feature) inside the K and the V part.
  int64_t k_index(int64_t token, int64_t d) const {
    return pair == 2 ? (d / 2 * block_size + token) * 2 + d % 2 : d * block_size + token;
  }
  int64_t v_index(int64_t token, int64_t d) const {
    return pair == 2 ? (token / 2 * head_dim + d) * 2 + token % 2 : token * head_dim + d;
  }
};

}  // namespace tessera::cpu
