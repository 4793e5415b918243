#pragma once

#include <cstdint>

namespace tessera {

/// Every number that decides how much memory a running engine holds, after defaults have been filled in. The memory
/// plan makes it; start-up, scheduler and admission obey it.
struct EngineShape {
  int64_t session_len = 0;      ///< tokens of one conversation, prompt and answer
  int64_t max_sequences = 16;   ///< answers in one step (--max-batch-size)
  int64_t step_tokens = 0;      ///< token budget of one step; >= max_sequences
  int64_t vision_batch = 0;     ///< tiles in one vision pass
  int64_t block_size = 16;      ///< tokens in a KV block
  int64_t kv_blocks = 0;        ///< of the cache, the same on every rank
  int64_t embedding_tiles = 0;  ///< tiles whose embeddings the embedding cache holds
  int64_t host_tiles = 0;       ///< tiles of pictures in host memory: requests' under way, and those kept for the next

  int64_t max_blocks_per_sequence() const { return (session_len + block_size - 1) / block_size; }
  int64_t kv_tokens() const { return kv_blocks * block_size; }
  bool operator==(const EngineShape&) const = default;
};

}  // namespace tessera
