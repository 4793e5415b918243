#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tessera {

/// "The symbols `left` and `right`, standing side by side, become `result`." Lower ranks go first. Symbols are token
/// ids, or negative numbers for characters that are no piece.
struct MergeRule {
  int32_t left = 0;
  int32_t right = 0;
  int32_t rank = 0;
  int32_t result = 0;
};

/// The merge rules of a byte-pair encoding, found by pair in constant time.
class MergeTable {
 public:
  struct Merge {
    int32_t rank;
    int32_t result;
  };

  MergeTable() = default;
  /// Of two rules for one pair the later one counts.
  explicit MergeTable(std::span<const MergeRule> rules);

  /// The rule for a pair, or nullptr.
  const Merge* find(int32_t left, int32_t right) const;

  /// Merges the pair of lowest rank, the leftmost of equals, until no neighbours have a rule. Time: n log n.
  void apply(std::vector<int32_t>* symbols) const;

 private:
  struct Slot {
    uint64_t key;
    Merge merge;
  };
  void apply_short(std::vector<int32_t>* symbols) const;
  void apply_long(std::vector<int32_t>* symbols) const;

  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  uint64_t mask_ = 0;
};

}  // namespace tessera
