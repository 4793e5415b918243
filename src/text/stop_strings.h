#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// Finds the first stop string in text that arrives in pieces. What could still become a stop string is held back,
/// nothing else. Work is linear in the text, whatever the stop strings. One object a stream; not thread-safe.
class StopStrings {
 public:
  /// Empty strings among `stops` are ignored (the doors refuse them).
  explicit StopStrings(const std::vector<std::string>& stops);

  struct Result {
    std::string text;      ///< may be shown now; never any part of a stop string that was found
    bool stopped = false;  ///< a stop string was completed; the text before it has been given out
    int index = -1;        ///< which one (of the constructor's list)
  };

  /// Takes the next piece of text. Requires: no earlier call returned stopped. Of several stop strings, the one that
  /// is completed first ends the text; of those completed by the same byte, the one that begins first (the longest).
  Result push(std::string_view piece);
  /// The held-back text when the stream ends without a stop string.
  std::string finish();
  bool empty() const { return empty_; }

 private:
  struct Node {
    int next[16];   ///< transition by half byte, after build always valid
    int depth = 0;  ///< half bytes from the root
    int match = -1; ///< the longest stop string that ends here
  };
  int add_node(int depth);
  void insert(std::string_view stop, int index);
  void link();

  std::vector<Node> nodes_;
  std::vector<size_t> lengths_;  ///< bytes of each stop string
  int state_ = 0;
  std::string held_;
  bool empty_ = true;
};

}  // namespace tessera
