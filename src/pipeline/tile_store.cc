#include "pipeline/tile_store.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "core/check.h"

namespace tessera {

// One holder's view of a stored picture.
class TileStore::Pin final : public PictureTiles {
 public:
  Pin(TileStore& store, Entry entry) : store_(store), entry_(entry) {
    tile_bytes = store.tile_bytes_;
    for (const int32_t slot : entry->slots) tiles.push_back(store.slot(slot));
  }
  ~Pin() override { store_.unpin(entry_); }

 private:
  TileStore& store_;
  Entry entry_;
};

TileStore::Room::~Room() {
  for (const Place& place : places_) store_->give_back(place.slots);
}

TileStore::TileStore(uint8_t* memory, size_t tile_bytes, int64_t slots)
    : memory_(memory), tile_bytes_(tile_bytes), slots_(slots) {
  // The first slots first: memory that was never needed is never touched.
  for (int64_t slot = slots; slot-- > 0;) free_.push_back(static_cast<int32_t>(slot));
}

Result<TileStore::Room> TileStore::take(std::span<const Wanted> wanted, const std::function<bool()>& given_up) {
  int64_t tiles = 0;
  for (const Wanted& picture : wanted) tiles += picture.tiles;
  if (tiles > slots_)
    return does_not_fit("the request's pictures have " + std::to_string(tiles) + " tiles; there is host memory for " +
                        std::to_string(slots_) + ": raise --tile-cache or lower --max-dynamic-patch");
  std::unique_lock lock(mutex_);
  const auto place = line_.insert(line_.end(), ++last_taker_);
  const auto leaves = [&] { return stopping_ || given_up(); };
  const auto served = [&] { return leaves() || (place == line_.begin() && fits(wanted)); };
  while (!changed_.wait_for(lock, std::chrono::milliseconds(100), served)) continue;
  const bool left = leaves();
  line_.erase(place);
  changed_.notify_all();  // the next in line may be served already
  if (left) return Status(StatusCode::kCancelled, "the request was given up before its pictures were prepared");
  return Room(*this, claim(wanted));
}

// Whether what is free and what nobody holds, but for the wanted pictures themselves, holds those that are not there.
bool TileStore::fits(std::span<const Wanted> wanted) const {
  std::set<Digest> seen;
  int64_t missing = 0;
  auto room = static_cast<int64_t>(free_.size());
  for (const Stored& stored : stored_)
    if (stored.pins == 0) room += static_cast<int64_t>(stored.slots.size());
  for (const Wanted& picture : wanted) {
    if (!seen.insert(picture.source).second) continue;
    const auto found = index_.find(picture.source);
    if (found == index_.end())
      missing += picture.tiles;
    else if (found->second->pins == 0)
      room -= picture.tiles;
  }
  return missing <= room;
}

std::vector<TileStore::Place> TileStore::claim(std::span<const Wanted> wanted) {
  std::vector<Place> places(wanted.size());
  std::set<Digest> missing;
  int64_t tiles = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (const auto found = index_.find(wanted[i].source); found != index_.end()) {
      places[i].picture = pin(found->second);
      ++hits_;
    } else if (missing.insert(wanted[i].source).second) {
      tiles += wanted[i].tiles;
    }
  }
  make_room(tiles);
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (missing.erase(wanted[i].source) == 0) continue;  // found, or the second time in this request
    places[i].slots.assign(free_.end() - wanted[i].tiles, free_.end());
    std::reverse(places[i].slots.begin(), places[i].slots.end());
    free_.resize(free_.size() - static_cast<size_t>(wanted[i].tiles));
  }
  return places;
}

void TileStore::make_room(int64_t tiles) {
  for (auto entry = stored_.end(); entry != stored_.begin() && static_cast<int64_t>(free_.size()) < tiles;) {
    --entry;
    if (entry->pins > 0) continue;
    free_.insert(free_.end(), entry->slots.begin(), entry->slots.end());
    index_.erase(entry->source);
    entry = stored_.erase(entry);
  }
  TESSERA_CHECK(static_cast<int64_t>(free_.size()) >= tiles, "tile store: room that was counted is not there");
}

PreparedPicture TileStore::pin(Entry entry) {
  ++entry->pins;
  stored_.splice(stored_.begin(), stored_, entry);
  PreparedPicture picture = entry->picture;
  picture.tiles = std::make_shared<Pin>(*this, entry);
  return picture;
}

PreparedPicture TileStore::publish(Place& place, const Digest& source, const ImageInfo& info, const Digest& key) {
  std::lock_guard lock(mutex_);
  stored_.push_front({.source = source, .picture = {info, key, nullptr}, .slots = std::move(place.slots)});
  place.slots.clear();
  const Entry entry = stored_.begin();
  entry->findable = index_.emplace(source, entry).second;  // not the first when two prepared it at once
  return place.picture = pin(entry);
}

void TileStore::unpin(Entry entry) {
  std::lock_guard lock(mutex_);
  if (--entry->pins > 0) return;
  if (!entry->findable) {
    free_.insert(free_.end(), entry->slots.begin(), entry->slots.end());
    stored_.erase(entry);
  }
  changed_.notify_all();
}

void TileStore::give_back(const std::vector<int32_t>& slots) {
  if (slots.empty()) return;
  std::lock_guard lock(mutex_);
  free_.insert(free_.end(), slots.begin(), slots.end());
  changed_.notify_all();
}

void TileStore::wake() {
  std::lock_guard lock(mutex_);
  changed_.notify_all();
}

void TileStore::stop() {
  std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

uint64_t TileStore::hits() const {
  std::lock_guard lock(mutex_);
  return hits_;
}

int64_t TileStore::available() const {
  std::lock_guard lock(mutex_);
  auto room = static_cast<int64_t>(free_.size());
  for (const Stored& stored : stored_)
    if (stored.pins == 0) room += static_cast<int64_t>(stored.slots.size());
  return room;
}

}  // namespace tessera
