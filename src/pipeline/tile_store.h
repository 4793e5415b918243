#pragma once

#include <condition_variable>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "core/digest.h"
#include "core/result.h"
#include "runtime/token_request.h"

namespace tessera {

/// A picture ready for the vision tower.
struct PreparedPicture {
  ImageInfo info;
  Digest key{};  ///< of the decoded pixels' tiles and their cutting: equal keys, equal embeddings
  std::shared_ptr<const PictureTiles> tiles;
};

/// Host memory for the tiles of pictures: fixed slots of one tile each, made at start-up, so that the plan holds whatever
/// comes. A picture's slots are held by the requests that carry it; afterwards it stays to be found again, by the digest
/// of its encoded bytes, until its room is wanted, least recently used first. A request takes the room of all its
/// pictures at once and waits, in order of arrival, when there is too little: holders never wait, so everybody gets on.
/// Thread-safe. Outlives what it gave out.
class TileStore {
 public:
  /// `memory` u8 [slots, tile_bytes], the caller's.
  TileStore(uint8_t* memory, size_t tile_bytes, int64_t slots);

  struct Wanted {
    Digest source{};
    int64_t tiles = 0;
  };

  /// One picture of a Room: found (tiles set), or slots to be filled and published.
  struct Place {
    PreparedPicture picture;
    std::vector<int32_t> slots;
  };

  /// The room of one request; what is not published is given back.
  class Room {
   public:
    Room(TileStore& store, std::vector<Place> places) : store_(&store), places_(std::move(places)) {}
    Room(Room&& other) noexcept : store_(other.store_), places_(std::move(other.places_)) { other.places_.clear(); }
    Room& operator=(Room&&) = delete;
    ~Room();
    Place& operator[](size_t index) { return places_[index]; }

   private:
    TileStore* store_;
    std::vector<Place> places_;
  };

  /// Waits for the room of all these pictures. Errors: kDoesNotFit when the store could never hold them, kCancelled once
  /// `given_up()` says so (asked again at each wake(), and ten times a second: deadlines pass) or after stop().
  Result<Room> take(std::span<const Wanted> wanted, const std::function<bool()>& given_up);
  /// Where slot `slot` lies, [tile_bytes].
  uint8_t* slot(int32_t slot) const { return memory_ + static_cast<size_t>(slot) * tile_bytes_; }
  size_t tile_bytes() const { return tile_bytes_; }
  /// Makes a filled place a picture that others can find under `source`. Requires: place.slots not empty.
  PreparedPicture publish(Place& place, const Digest& source, const ImageInfo& info, const Digest& key);

  /// Lets waiting takers ask again whether they gave up.
  void wake();
  /// Refuses all takers from now on.
  void stop();

  uint64_t hits() const;
  int64_t slots() const { return slots_; }
  /// Slots that no request holds.
  int64_t available() const;

 private:
  struct Stored {
    Digest source{};
    PreparedPicture picture;  ///< its tiles stay empty: each holder has its own pin
    std::vector<int32_t> slots;
    int64_t pins = 0;
    bool findable = false;
  };
  using Entry = std::list<Stored>::iterator;
  class Pin;

  bool fits(std::span<const Wanted> wanted) const;
  std::vector<Place> claim(std::span<const Wanted> wanted);
  void make_room(int64_t tiles);
  PreparedPicture pin(Entry entry);
  void unpin(Entry entry);
  void give_back(const std::vector<int32_t>& slots);

  uint8_t* memory_;
  size_t tile_bytes_;
  int64_t slots_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::list<uint64_t> line_;   ///< takers that wait, first come first
  uint64_t last_taker_ = 0;
  std::vector<int32_t> free_;
  std::list<Stored> stored_;   ///< most recently used first
  std::map<Digest, Entry> index_;
  bool stopping_ = false;
  uint64_t hits_ = 0;
};

}  // namespace tessera
