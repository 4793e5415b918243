#include <gtest/gtest.h>

#include "runtime/block_pool.h"
#include "runtime/embedding_cache.h"
#include "runtime/prefix_hash.h"
#include "tests/support/fake_model.h"

namespace tessera {
namespace {

Digest digest(uint64_t n) { return {n, n + 1, n + 2, n + 3}; }

TEST(BlockPool, EvictsWhatWasLetGoLongestAgo) {
  BlockPool pool(3);
  for (uint64_t i = 0; i < 3; ++i) {
    BlockRef block = pool.allocate();
    pool.publish(block, digest(i * 8));  // the same slot of a small table: probing is part of the test
  }
  EXPECT_EQ(pool.cached(), 3);
  { BlockRef used_again = pool.find(digest(0)); EXPECT_TRUE(used_again); }
  BlockRef taken = pool.allocate();
  EXPECT_FALSE(pool.find(digest(8))) << "the oldest";
  EXPECT_TRUE(pool.find(digest(0)));
  EXPECT_TRUE(pool.find(digest(16)));
  std::vector<int32_t> held(3, 0);
  held[static_cast<size_t>(taken.index())] = 1;
  EXPECT_TRUE(pool.check(held).empty());
  held[static_cast<size_t>(taken.index())] = 2;
  EXPECT_FALSE(pool.check(held).empty()) << "the check must find a wrong count";
}

TEST(BlockPool, SharedBlocksReturnWithTheLastHolder) {
  BlockPool pool(2);
  BlockRef a = pool.allocate();
  {
    BlockRef b = a.share();
    EXPECT_EQ(pool.references(a.index()), 2);
  }
  EXPECT_EQ(pool.used(), 1);
  a = BlockRef();
  EXPECT_EQ(pool.used(), 0);
  BlockRef x = pool.allocate(), y = pool.allocate();
  EXPECT_THROW((void)pool.allocate(), CheckFailure);
}

TEST(BlockPool, ManyDigestsComeAndGo) {
  BlockPool pool(64);
  for (uint64_t i = 0; i < 5000; ++i) {
    const Digest d = digest(i * 0x9e3779b97f4a7c15);
    BlockRef block = pool.allocate();
    pool.publish(block, d);
    EXPECT_TRUE(pool.find(d));
  }
  EXPECT_TRUE(pool.check({}).empty());
  EXPECT_EQ(pool.cached(), 64);
}

TEST(EmbeddingCache, PinnedPicturesStay) {
  EmbeddingCache cache(10);
  EmbeddingPin a = cache.insert(digest(1), 6);
  EXPECT_FALSE(cache.insert(digest(2), 5)) << "no room beside a pinned picture";
  a->tiles_done = 6;
  a = EmbeddingPin();
  EXPECT_TRUE(cache.find(digest(1)));
  EmbeddingPin b = cache.insert(digest(2), 5);
  ASSERT_TRUE(b);
  EXPECT_FALSE(cache.find(digest(1)));
  b = EmbeddingPin();
  EXPECT_EQ(cache.free_tiles(), 10) << "an unfinished picture leaves at once";
  EXPECT_TRUE(cache.check().empty());
}

TEST(PrefixHash, EverythingThatChangesKeysChangesTheDigest) {
  const RopeParams rope{.kind = RopeKind::kDynamicNtk, .head_dim = 4, .base = 10000, .factor = 2, .max_position = 40};
  PrefixHasher hasher(rope, 4);
  TokenRequest request;
  for (int32_t i = 0; i < 24; ++i) request.prompt.push_back(i);
  request.images.push_back(testing::fake_picture(1, 2, 5));
  const std::vector<Digest> base = hasher.prompt(request);
  ASSERT_EQ(base.size(), 6u);
  EXPECT_EQ(hasher.prompt(request), base);
  TokenRequest other = request;
  other.prompt[7] = 90;  // inside the picture: ids there mean nothing
  EXPECT_EQ(hasher.prompt(other), base);
  other = request;
  other.prompt[2] = 90;
  EXPECT_NE(hasher.prompt(other)[0], base[0]);
  EXPECT_NE(hasher.prompt(other)[5], base[5]) << "a digest covers all before it";
  other = request;
  other.images[0].key[3] ^= 1;
  EXPECT_EQ(hasher.prompt(other)[0], base[0]);
  EXPECT_NE(hasher.prompt(other)[1], base[1]);
  other = request;
  other.cache_salt = "tenant";
  EXPECT_NE(hasher.prompt(other)[0], base[0]);
  other = request;
  while (other.prompt.size() < 48) other.prompt.push_back(1);
  EXPECT_NE(hasher.prompt(other)[0], base[0]) << "a longer prompt has another rope base";
  TokenRequest moved = request;
  moved.images[0].first = 6;
  EXPECT_NE(hasher.prompt(moved)[1], base[1]);
  EXPECT_EQ(hasher.next(base[5], request, std::vector<int32_t>{1, 2, 3, 4}, 24), hasher.next(base[5], request, std::vector<int32_t>{1, 2, 3, 4}, 24));
}

}  // namespace
}  // namespace tessera
