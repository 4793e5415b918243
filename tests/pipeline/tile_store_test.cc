#include "pipeline/tile_store.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <future>
#include <random>
#include <thread>

namespace tessera {
namespace {

constexpr size_t kTileBytes = 12;

struct Store {
  explicit Store(int64_t slots) : memory(static_cast<size_t>(slots) * kTileBytes), store(memory.data(), kTileBytes, slots) {}
  std::vector<uint8_t> memory;
  TileStore store;
};

Digest name(uint64_t n) { return {n, n, n, n}; }
bool never() { return false; }

// Prepares a picture whose tiles hold its name, as a worker would.
PreparedPicture prepare(TileStore& store, uint64_t picture, int64_t tiles) {
  const TileStore::Wanted wanted[] = {{name(picture), tiles}};
  auto room = store.take(wanted, never);
  EXPECT_TRUE(room.ok()) << room.status().message();
  TileStore::Place& place = (*room)[0];
  if (place.slots.empty()) return place.picture;
  for (const int32_t slot : place.slots) std::memset(store.slot(slot), static_cast<int>(picture), kTileBytes);
  return store.publish(place, name(picture), {.tiles = tiles}, name(picture));
}

bool intact(const PreparedPicture& picture) {
  for (const uint8_t* tile : picture.tiles->tiles)
    for (size_t i = 0; i < kTileBytes; ++i)
      if (tile[i] != static_cast<uint8_t>(picture.key[0])) return false;
  return true;
}

TEST(TileStore, APictureIsFoundUntilItsRoomIsWanted) {
  Store s(6);
  const uint8_t* first = prepare(s.store, 1, 3).tiles->tiles[0];
  prepare(s.store, 2, 3);
  EXPECT_EQ(prepare(s.store, 1, 3).tiles->tiles[0], first);
  EXPECT_EQ(s.store.hits(), 1u);
  prepare(s.store, 3, 2);  // takes the room of 2, which nobody has used for longest
  prepare(s.store, 1, 3);
  EXPECT_EQ(s.store.hits(), 2u);
  prepare(s.store, 2, 3);
  EXPECT_EQ(s.store.hits(), 2u);
}

TEST(TileStore, WhatARequestHoldsStays) {
  Store s(6);
  const PreparedPicture held = prepare(s.store, 1, 4);
  for (uint64_t i = 2; i < 20; ++i) prepare(s.store, i, 2);
  EXPECT_TRUE(intact(held));
  EXPECT_EQ(s.store.available(), 2);
}

TEST(TileStore, TooManyTilesAreRefusedWithTheNumbers) {
  Store s(6);
  const TileStore::Wanted wanted[] = {{name(1), 4}, {name(2), 3}};
  const auto room = s.store.take(wanted, never);
  EXPECT_EQ(room.status().code(), StatusCode::kDoesNotFit);
  EXPECT_NE(room.status().message().find("7 tiles"), std::string::npos) << room.status().message();
  EXPECT_NE(room.status().message().find("for 6"), std::string::npos) << room.status().message();
}

TEST(TileStore, WhatIsNotPublishedIsGivenBack) {
  Store s(6);
  {
    const TileStore::Wanted wanted[] = {{name(1), 4}, {name(1), 4 - 2}};
    auto room = s.store.take(wanted, never);
    ASSERT_TRUE(room.ok());
    EXPECT_EQ((*room)[0].slots.size(), 4u);
    EXPECT_TRUE((*room)[1].slots.empty()) << "the same picture once more takes no room";
    EXPECT_EQ(s.store.available(), 2);
  }
  EXPECT_EQ(s.store.available(), 6);
}

TEST(TileStore, WaitsForRoomAndForItsTurn) {
  Store s(6);
  auto held = std::make_unique<PreparedPicture>(prepare(s.store, 1, 4));
  std::atomic<int> done{0};
  std::thread large([&] {
    prepare(s.store, 2, 5);
    ++done;
  });
  std::thread small;
  // The small one would fit, but comes after the large one, which would starve.
  std::atomic<bool> large_waits{false};
  std::thread asks([&] {
    const TileStore::Wanted wanted[] = {{name(9), 6}};
    (void)s.store.take(wanted, [&] { return large_waits.load(); });
  });
  large_waits = true;
  s.store.wake();
  asks.join();
  EXPECT_EQ(done, 0);
  held.reset();
  large.join();
  EXPECT_EQ(done, 1);
}

TEST(TileStore, WhoGivesUpAndWhoIsStoppedIsToldSo) {
  Store s(2);
  const PreparedPicture held = prepare(s.store, 1, 2);
  const TileStore::Wanted wanted[] = {{name(2), 1}};
  std::atomic<bool> given_up{false};
  auto gave_up = std::async(std::launch::async, [&] { return s.store.take(wanted, [&] { return given_up.load(); }).status().code(); });
  given_up = true;
  s.store.wake();
  EXPECT_EQ(gave_up.get(), StatusCode::kCancelled);
  auto stopped = std::async(std::launch::async, [&] { return s.store.take(wanted, never).status().code(); });
  s.store.stop();
  EXPECT_EQ(stopped.get(), StatusCode::kCancelled);
}

// Workers and an engine at once: nobody's tiles change while held, and all come back. For the thread sanitizer, too.
TEST(TileStore, ManyThreadsTakeAndGiveBack) {
  Store s(12);
  std::atomic<int> broken{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 2000; ++i) {
        const uint64_t picture = random() % 9;
        const PreparedPicture held = prepare(s.store, picture, 1 + static_cast<int64_t>(picture % 4));
        broken += !intact(held);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(broken, 0);
  EXPECT_EQ(s.store.available(), 12);
}

}  // namespace
}  // namespace tessera
