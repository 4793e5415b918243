#pragma once

#include <cstdint>

#include "models/config.h"
#include "ops/context.h"

namespace tessera {

/// A contiguous range of rows, columns or heads.
struct Range {
  int64_t begin = 0;
  int64_t count = 0;
};

/// How a rank's share of the model is cut. Pure functions of shapes and rank, so that a plan for N ranks counts what N
/// loads would allocate.

/// Rank's part of `size` when the ranks divide it, else all of it (replicated: every rank computes the same).
inline bool divides(int64_t size, Rank rank) { return size % rank.count == 0; }
inline Range even_shard(int64_t size, Rank rank) {
  if (!divides(size, rank)) return {0, size};
  return {rank.index * (size / rank.count), size / rank.count};
}

/// Rank's part of `size` rows cut into equal pieces, the last padded: begin may reach past the end. For the head, whose
/// vocabulary is often odd.
inline Range padded_shard(int64_t size, Rank rank) {
  const int64_t piece = (size + rank.count - 1) / rank.count;
  return {rank.index * piece, piece};
}

/// Query and key-value heads of a rank. Key-value heads are replicated where there are fewer of them than ranks; where
/// heads cannot be cut evenly, attention as a whole is replicated.
struct AttentionShard {
  bool split = false;  ///< the output projection is row-parallel: its products are summed over the ranks
  Range heads;
  Range kv_heads;
};

inline AttentionShard attention_shard(int64_t heads, int64_t kv_heads, Rank rank) {
  const int64_t n = rank.count;
  if (n > 1 && heads % n == 0) {
    if (kv_heads % n == 0) return {true, even_shard(heads, rank), even_shard(kv_heads, rank)};
    if (n % kv_heads == 0) return {true, even_shard(heads, rank), {rank.index * kv_heads / n, 1}};
  }
  return {false, {0, heads}, {0, kv_heads}};
}

}  // namespace tessera
