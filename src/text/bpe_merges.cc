#include "text/bpe_merges.h"

#include <algorithm>
#include <limits>

namespace tessera {
namespace {

constexpr uint64_t kEmpty = std::numeric_limits<uint64_t>::max();  // the pair (-1, -1): U+0000 twice, never a rule

uint64_t key_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

uint64_t hash_of(uint64_t key) {
  key ^= key >> 29;
  key *= 0x9E3779B97F4A7C15u;
  return key ^ key >> 32;
}

// A merge that was possible when it was queued; stale when the symbols have changed since.
struct Candidate {
  int32_t rank;
  int32_t position;  // of the left symbol
  int32_t left;
  int32_t right;
};

// std heaps keep the largest in front: the lowest rank, then the leftmost, has to count as largest.
bool goes_later(const Candidate& a, const Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

}  // namespace

MergeTable::MergeTable(std::span<const MergeRule> rules) {
  size_t size = 16;
  while (size < rules.size() * 2) size *= 2;
  slots_.assign(size, Slot{kEmpty, {0, 0}});
  mask_ = size - 1;
  for (const MergeRule& rule : rules) {
    const uint64_t key = key_of(rule.left, rule.right);
    uint64_t at = hash_of(key) & mask_;
    while (slots_[at].key != kEmpty && slots_[at].key != key) at = (at + 1) & mask_;
    slots_[at] = {key, {rule.rank, rule.result}};
  }
}

const MergeTable::Merge* MergeTable::find(int32_t left, int32_t right) const {
  if (slots_.empty()) return nullptr;
  const uint64_t key = key_of(left, right);
  if (key == kEmpty) return nullptr;
  for (uint64_t at = hash_of(key) & mask_;; at = (at + 1) & mask_) {
    if (slots_[at].key == key) return &slots_[at].merge;
    if (slots_[at].key == kEmpty) return nullptr;
  }
}

void MergeTable::apply(std::vector<int32_t>* symbols) const {
  constexpr size_t kShort = 24;  // below this, looking at all pairs again is cheaper than a heap
  if (symbols->size() < kShort)
    apply_short(symbols);
  else
    apply_long(symbols);
}

void MergeTable::apply_short(std::vector<int32_t>* symbols) const {
  std::vector<int32_t>& s = *symbols;
  while (s.size() > 1) {
    const Merge* best = nullptr;
    size_t best_at = 0;
    for (size_t i = 0; i + 1 < s.size(); ++i) {
      const Merge* merge = find(s[i], s[i + 1]);
      if (merge && (!best || merge->rank < best->rank)) {
        best = merge;
        best_at = i;
      }
    }
    if (!best) return;
    s[best_at] = best->result;
    s.erase(s.begin() + static_cast<ptrdiff_t>(best_at) + 1);
  }
}

void MergeTable::apply_long(std::vector<int32_t>* symbols) const {
  std::vector<int32_t>& s = *symbols;
  const auto count = static_cast<int32_t>(s.size());
  std::vector<int32_t> next(s.size()), previous(s.size());  // -1 at the ends, and for a symbol merged away
  for (int32_t i = 0; i < count; ++i) {
    previous[i] = i - 1;
    next[i] = i + 1 < count ? i + 1 : -1;
  }
  std::vector<Candidate> heap;
  for (int32_t i = 0; i + 1 < count; ++i)
    if (const Merge* merge = find(s[i], s[i + 1])) heap.push_back({merge->rank, i, s[i], s[i + 1]});
  std::make_heap(heap.begin(), heap.end(), goes_later);

  const auto queue = [&](int32_t at) {
    if (at < 0 || next[at] < 0) return;
    const Merge* merge = find(s[at], s[next[at]]);
    if (!merge) return;
    heap.push_back({merge->rank, at, s[at], s[next[at]]});
    std::push_heap(heap.begin(), heap.end(), goes_later);
  };
  std::vector<bool> gone(s.size());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), goes_later);
    const Candidate candidate = heap.back();
    heap.pop_back();
    const int32_t at = candidate.position, right = next[at];
    if (gone[at] || right < 0 || s[at] != candidate.left || s[right] != candidate.right) continue;
    s[at] = find(candidate.left, candidate.right)->result;
    gone[right] = true;
    next[at] = next[right];
    if (next[at] >= 0) previous[next[at]] = at;
    queue(previous[at]);
    queue(at);
  }
  size_t kept = 0;
  for (int32_t i = 0; i < count; ++i)
    if (!gone[i]) s[kept++] = s[i];
  s.resize(kept);
}

}  // namespace tessera
