#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "text/tokenizer_data.h"

namespace tessera {

/// Finds added tokens in text: leftmost first, the longest where several begin at one place. Immutable; thread-safe.
class AddedTokenFinder {
 public:
  AddedTokenFinder() = default;
  /// Knows the tokens of `added` whose `normalized` flag is the one given.
  AddedTokenFinder(const std::vector<AddedToken>& added, bool normalized);

  /// A stretch of text: an added token with the white space that it swallows, or (token < 0) text in between.
  struct Stretch {
    size_t begin = 0;
    size_t end = 0;
    int32_t token = -1;
  };

  /// Cuts the whole text; empty stretches of text are left out.
  std::vector<Stretch> cut(std::string_view text) const;
  bool empty() const { return tokens_.empty(); }

 private:
  struct Edge {
    unsigned char byte;
    int32_t child;
  };
  struct Node {
    std::vector<Edge> edges;  // sorted by byte
    int32_t token = -1;       // index into tokens_
  };
  int32_t child(int32_t node, unsigned char byte) const;
  const AddedToken* longest_at(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::vector<bool> first_bytes_ = std::vector<bool>(256);
};

}  // namespace tessera
