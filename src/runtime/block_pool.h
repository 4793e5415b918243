#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/digest.h"

namespace tessera {

class BlockPool;

/// One holder's claim on a KV block; the block goes back to its pool when the last claim ends. Movable.
class BlockRef {
 public:
  BlockRef() = default;
  BlockRef(BlockRef&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), index_(std::exchange(other.index_, -1)) {}
  BlockRef& operator=(BlockRef&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(index_, other.index_);
    return *this;
  }
  ~BlockRef();

  explicit operator bool() const { return pool_ != nullptr; }
  int32_t index() const { return index_; }
  /// Another claim on the same block.
  BlockRef share() const;

 private:
  friend class BlockPool;
  BlockRef(BlockPool* pool, int32_t index) : pool_(pool), index_(index) {}

  BlockPool* pool_ = nullptr;
  int32_t index_ = -1;
};

/// The KV blocks of an engine: who holds which, and which free ones still hold a prefix that somebody may ask for again.
/// A block is held (references > 0), cached (free, but published under the digest of its prefix), or empty. allocate()
/// takes empty blocks first, then the cached one that was let go longest ago. All storage is made by the constructor.
/// Thread rule: the engine's thread. The pool outlives its references.
class BlockPool {
 public:
  explicit BlockPool(int64_t blocks);

  int64_t total() const { return static_cast<int64_t>(references_.size()); }
  int64_t available() const { return available_; }  ///< empty and cached
  int64_t cached() const { return cached_; }
  int64_t used() const { return total() - available_; }
  int32_t references(int32_t block) const { return references_[static_cast<size_t>(block)]; }

  /// Requires: available() > 0.
  BlockRef allocate();
  /// The block published under this digest, or an empty reference.
  BlockRef find(const Digest& digest);
  bool contains(const Digest& digest) const { return table_[find_slot(digest)] != kNone; }
  /// Makes a full block findable. Nothing happens when it is published already or another block holds the same prefix.
  void publish(const BlockRef& block, const Digest& digest);

  /// What is wrong, one line each. `held` is the number of references that the owners know of, by block.
  std::vector<std::string> check(const std::vector<int32_t>& held) const;

 private:
  friend class BlockRef;
  static constexpr int32_t kNone = -1;

  void retain(int32_t block);
  void release(int32_t block);
  void link(int32_t block, bool front);
  void unlink(int32_t block);
  void forget(int32_t block);
  size_t find_slot(const Digest& digest) const;

  std::vector<int32_t> references_;
  std::vector<int32_t> next_, previous_;  ///< list of the available: empty ones first, then by age
  std::vector<uint8_t> published_;
  std::vector<Digest> digests_;
  std::vector<int32_t> table_;  ///< open addressing by digest: block or kNone
  int32_t head_ = kNone, tail_ = kNone;
  int64_t available_ = 0, cached_ = 0;
};

}  // namespace tessera
