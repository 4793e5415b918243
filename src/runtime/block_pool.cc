#include "runtime/block_pool.h"

#include <bit>

#include "core/check.h"

namespace tessera {

BlockRef::~BlockRef() {
  if (pool_) pool_->release(index_);
}

BlockRef BlockRef::share() const {
  pool_->retain(index_);
  return BlockRef(pool_, index_);
}

BlockPool::BlockPool(int64_t blocks) {
  const auto count = static_cast<size_t>(blocks);
  references_.assign(count, 0);
  next_.assign(count, kNone);
  previous_.assign(count, kNone);
  published_.assign(count, 0);
  digests_.resize(count);
  // At most half full, so that a probe ends soon.
  table_.assign(std::bit_ceil(count * 2 + 1), kNone);
  for (int32_t block = 0; block < static_cast<int32_t>(count); ++block) link(block, /*front=*/false);
  available_ = blocks;
}

void BlockPool::link(int32_t block, bool front) {
  const auto at = static_cast<size_t>(block);
  const int32_t after = front ? head_ : kNone;
  const int32_t before = front ? kNone : tail_;
  next_[at] = after;
  previous_[at] = before;
  if (after == kNone) tail_ = block; else previous_[static_cast<size_t>(after)] = block;
  if (before == kNone) head_ = block; else next_[static_cast<size_t>(before)] = block;
}

void BlockPool::unlink(int32_t block) {
  const int32_t after = next_[static_cast<size_t>(block)];
  const int32_t before = previous_[static_cast<size_t>(block)];
  if (after == kNone) tail_ = before; else previous_[static_cast<size_t>(after)] = before;
  if (before == kNone) head_ = after; else next_[static_cast<size_t>(before)] = after;
}

size_t BlockPool::find_slot(const Digest& digest) const {
  const size_t mask = table_.size() - 1;
  size_t slot = static_cast<size_t>(digest[0]) & mask;
  while (table_[slot] != kNone && digests_[static_cast<size_t>(table_[slot])] != digest) slot = (slot + 1) & mask;
  return slot;
}

// Removes a published block from the table, moving up what probed past it (no tombstones: they would pile up).
void BlockPool::forget(int32_t block) {
  const size_t mask = table_.size() - 1;
  size_t hole = find_slot(digests_[static_cast<size_t>(block)]);
  for (size_t slot = (hole + 1) & mask; table_[slot] != kNone; slot = (slot + 1) & mask) {
    const size_t home = static_cast<size_t>(digests_[static_cast<size_t>(table_[slot])][0]) & mask;
    if (((slot - home) & mask) < ((slot - hole) & mask)) continue;  // would lie before its home
    table_[hole] = table_[slot];
    hole = slot;
  }
  table_[hole] = kNone;
  published_[static_cast<size_t>(block)] = 0;
}

void BlockPool::retain(int32_t block) {
  auto& references = references_[static_cast<size_t>(block)];
  if (references++ > 0) return;
  unlink(block);
  --available_;
  if (published_[static_cast<size_t>(block)]) --cached_;
}

void BlockPool::release(int32_t block) {
  auto& references = references_[static_cast<size_t>(block)];
  if (--references > 0) return;
  const bool cached = published_[static_cast<size_t>(block)] != 0;
  link(block, /*front=*/!cached);
  ++available_;
  if (cached) ++cached_;
}

BlockRef BlockPool::allocate() {
  TESSERA_CHECK(available_ > 0, "BlockPool: all " + std::to_string(total()) + " blocks are held");
  const int32_t block = head_;
  retain(block);
  if (published_[static_cast<size_t>(block)]) forget(block);
  return BlockRef(this, block);
}

BlockRef BlockPool::find(const Digest& digest) {
  const int32_t block = table_[find_slot(digest)];
  if (block == kNone) return {};
  retain(block);
  return BlockRef(this, block);
}

void BlockPool::publish(const BlockRef& block, const Digest& digest) {
  const auto at = static_cast<size_t>(block.index());
  if (published_[at]) return;
  const size_t slot = find_slot(digest);
  if (table_[slot] != kNone) return;
  digests_[at] = digest;
  published_[at] = 1;
  table_[slot] = block.index();
}

std::vector<std::string> BlockPool::check(const std::vector<int32_t>& held) const {
  std::vector<std::string> wrong;
  for (size_t i = 0; i < references_.size(); ++i) {
    const int32_t owners = i < held.size() ? held[i] : 0;
    if (references_[i] != owners)
      wrong.push_back("block " + std::to_string(i) + " has " + std::to_string(references_[i]) + " references, " +
                      std::to_string(owners) + " owners");
    if (published_[i] && table_[find_slot(digests_[i])] != static_cast<int32_t>(i))
      wrong.push_back("block " + std::to_string(i) + " is published but can't be found");
  }
  int64_t listed = 0, cached = 0, in_table = 0, published = 0;
  for (int32_t block = head_; block != kNone && listed <= total(); block = next_[static_cast<size_t>(block)]) {
    ++listed;
    cached += published_[static_cast<size_t>(block)];
    if (references_[static_cast<size_t>(block)] != 0)
      wrong.push_back("block " + std::to_string(block) + " is held and in the list of the available");
  }
  for (const int32_t block : table_) in_table += block != kNone;
  for (const uint8_t flag : published_) published += flag;
  const auto expect = [&](const char* what, int64_t have, int64_t want) {
    if (have != want)
      wrong.push_back(std::string(what) + ": " + std::to_string(have) + ", expected " + std::to_string(want));
  };
  expect("blocks in the list of the available", listed, available_);
  expect("cached blocks in the list", cached, cached_);
  expect("digests in the table", in_table, published);
  return wrong;
}

}  // namespace tessera
