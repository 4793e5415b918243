#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace tessera {

/// A tokenizer's pieces as a tree over their bytes, so that tokens with a common beginning are judged together.
/// Nodes stand in depth-first order; a node's subtree ends at `end`.
struct PieceTree {
  struct Node {
    unsigned char byte = 0;
    int32_t depth = 0;             ///< 1 for the first byte of a piece
    int32_t end = 0;
    int32_t first_token = 0;       ///< into tokens: the pieces that end here
    int32_t token_count = 0;
  };
  std::vector<Node> nodes;
  std::vector<int32_t> tokens;
};

/// What grammars need to know of a tokenizer; made once a model (about 0.2 s for 150,000 pieces), then shared.
/// Immutable; thread-safe.
class GrammarVocabulary {
 public:
  explicit GrammarVocabulary(const Tokenizer& tokenizer);

  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }
  size_t words() const { return (pieces_.size() + 31) / 32; }
  /// Empty for control tokens and ids without a piece: they are never part of a text.
  const std::string& bytes(int32_t id) const { return pieces_[static_cast<size_t>(id)]; }
  int32_t longest() const { return longest_; }

  const PieceTree& all() const { return all_; }
  /// The pieces that are more than whole characters of a string's inside: with quotes, backslashes, control bytes, or
  /// parts of characters.
  const PieceTree& special() const { return special_; }
  /// Sets the bits of the other pieces, those of at most `room` code points.
  void add_plain(int32_t room, std::vector<uint32_t>* mask) const;

 private:
  std::vector<std::string> pieces_;
  int32_t longest_ = 0;
  PieceTree all_, special_;
  std::vector<std::vector<uint32_t>> plain_masks_;            // by room, 0..kBuckets - 1
  std::vector<std::pair<int32_t, int32_t>> long_plain_;       // (code points, id), ascending
};

}  // namespace tessera
