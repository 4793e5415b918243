#include "runtime/embedding_cache.h"

#include <algorithm>

namespace tessera {

EmbeddingPin::~EmbeddingPin() {
  if (picture_) cache_->unpin(picture_);
}

EmbeddingCache::EmbeddingCache(int64_t tiles) : tiles_(tiles) {
  free_.reserve(static_cast<size_t>(tiles));
  for (int64_t slot = tiles; slot-- > 0;) free_.push_back(static_cast<int32_t>(slot));
}

EmbeddingPin EmbeddingCache::share(EmbeddedPicture* picture) {
  if (picture->pins++ == 0) {
    unpinned_.erase(picture->age);
    reclaimable_ -= static_cast<int64_t>(picture->slots.size());
  }
  return EmbeddingPin(this, picture);
}

EmbeddingPin EmbeddingCache::find(const Digest& key) {
  const auto found = pictures_.find(key);
  return found == pictures_.end() ? EmbeddingPin() : share(&found->second);
}

EmbeddingPin EmbeddingCache::insert(const Digest& key, int64_t tiles) {
  if (tiles > free_tiles() + reclaimable_) return {};
  while (tiles > free_tiles()) erase(unpinned_.front());
  EmbeddedPicture& picture = pictures_[key];
  picture.key = key;
  picture.slots.assign(free_.end() - tiles, free_.end());
  free_.resize(free_.size() - static_cast<size_t>(tiles));
  picture.pins = 1;
  return EmbeddingPin(this, &picture);
}

void EmbeddingCache::unpin(EmbeddedPicture* picture) {
  if (--picture->pins > 0) return;
  picture->age = unpinned_.insert(unpinned_.end(), picture);
  reclaimable_ += static_cast<int64_t>(picture->slots.size());
  if (!picture->ready()) erase(picture);
}

void EmbeddingCache::erase(EmbeddedPicture* picture) {
  reclaimable_ -= static_cast<int64_t>(picture->slots.size());
  unpinned_.erase(picture->age);
  free_.insert(free_.end(), picture->slots.begin(), picture->slots.end());
  const Digest key = picture->key;  // the picture goes with its entry
  pictures_.erase(key);
}

std::vector<std::string> EmbeddingCache::check() const {
  std::vector<std::string> wrong;
  std::vector<int32_t> owners(static_cast<size_t>(tiles_), 0);
  for (const int32_t slot : free_) ++owners[static_cast<size_t>(slot)];
  int64_t reclaimable = 0;
  size_t unpinned = 0;
  for (const auto& [key, picture] : pictures_) {
    for (const int32_t slot : picture.slots) ++owners[static_cast<size_t>(slot)];
    if (picture.pins > 0) continue;
    ++unpinned;
    reclaimable += static_cast<int64_t>(picture.slots.size());
    if (!picture.ready()) wrong.push_back("an unfinished picture is kept without a pin");
  }
  for (size_t slot = 0; slot < owners.size(); ++slot)
    if (owners[slot] != 1)
      wrong.push_back("embedding tile " + std::to_string(slot) + " has " + std::to_string(owners[slot]) + " owners");
  if (unpinned != unpinned_.size() || reclaimable != reclaimable_)
    wrong.push_back("unpinned pictures: " + std::to_string(unpinned) + " of " + std::to_string(reclaimable) +
                    " tiles, listed " + std::to_string(unpinned_.size()) + " of " + std::to_string(reclaimable_));
  return wrong;
}

}  // namespace tessera
