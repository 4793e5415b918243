#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/digest.h"

namespace tessera {

class EmbeddingCache;

/// A digest's bits are spread evenly already.
struct DigestHash {
  size_t operator()(const Digest& digest) const { return static_cast<size_t>(digest[0]); }
};

/// One picture's place in the cache: which tile slots hold its rows, and how many of them are written.
struct EmbeddedPicture {
  Digest key{};
  std::vector<int32_t> slots;  ///< one a tile
  int64_t tiles_started = 0;   ///< in a vision pass, or done
  int64_t tiles_done = 0;
  int64_t pins = 0;
  std::list<EmbeddedPicture*>::iterator age;  ///< place in the list of the unpinned, when pins == 0

  bool ready() const { return tiles_done == static_cast<int64_t>(slots.size()); }
};

/// Keeps a picture's rows from being evicted. Movable.
class EmbeddingPin {
 public:
  EmbeddingPin() = default;
  EmbeddingPin(EmbeddingPin&& other) noexcept
      : cache_(std::exchange(other.cache_, nullptr)), picture_(std::exchange(other.picture_, nullptr)) {}
  EmbeddingPin& operator=(EmbeddingPin&& other) noexcept {
    std::swap(cache_, other.cache_);
    std::swap(picture_, other.picture_);
    return *this;
  }
  ~EmbeddingPin();

  explicit operator bool() const { return picture_ != nullptr; }
  EmbeddedPicture* operator->() const { return picture_; }
  EmbeddedPicture* get() const { return picture_; }

 private:
  friend class EmbeddingCache;
  EmbeddingPin(EmbeddingCache* cache, EmbeddedPicture* picture) : cache_(cache), picture_(picture) {}

  EmbeddingCache* cache_ = nullptr;
  EmbeddedPicture* picture_ = nullptr;
};

/// Which rows of the device's embedding buffer hold which picture. Room is given by the tile, so nothing fragments. A
/// picture that nobody pins stays until its room is wanted, least recently used first; one that was never finished
/// leaves at once. Thread rule: the engine's thread. The cache outlives its pins.
class EmbeddingCache {
 public:
  explicit EmbeddingCache(int64_t tiles);

  /// The picture with this key, pinned, or an empty pin.
  EmbeddingPin find(const Digest& key);
  /// Whether the picture is there, encoded or on its way.
  bool contains(const Digest& key) const { return pictures_.count(key) > 0; }
  /// Whether its rows are written.
  bool ready(const Digest& key) const {
    const auto found = pictures_.find(key);
    return found != pictures_.end() && found->second.ready();
  }
  /// Room for a picture that is not there, pinned, not ready; or an empty pin when pinned pictures hold too much.
  EmbeddingPin insert(const Digest& key, int64_t tiles);
  /// Another pin on the same picture.
  EmbeddingPin share(EmbeddedPicture* picture);

  int64_t tiles() const { return tiles_; }
  int64_t free_tiles() const { return static_cast<int64_t>(free_.size()); }
  int64_t pinned_pictures() const { return static_cast<int64_t>(pictures_.size() - unpinned_.size()); }
  std::vector<std::string> check() const;

 private:
  friend class EmbeddingPin;
  void unpin(EmbeddedPicture* picture);
  void erase(EmbeddedPicture* picture);

  int64_t tiles_;
  int64_t reclaimable_ = 0;  ///< tiles of unpinned pictures
  std::vector<int32_t> free_;
  std::unordered_map<Digest, EmbeddedPicture, DigestHash> pictures_;
  std::list<EmbeddedPicture*> unpinned_;  ///< longest unused first
};

}  // namespace tessera
