#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// Finds the first stop string in text that arrives in pieces. What could still become a stop string is held back,
/// nothing else. Work is linear in the text for
/// each stop string. One object a stream; not thread-safe.
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
  bool empty() const { return matchers_.empty(); }

 private:
  // Knuth, Morris and Pratt's automaton of one stop string.
  struct Matcher {
    std::string stop;
    int index = 0;
    std::vector<size_t> fallback;  ///< of each prefix, the longest proper one that is also its ending
    size_t matched = 0;            ///< bytes of `stop` that end the text so far
  };
  static bool advance(Matcher* matcher, char byte);

  std::vector<Matcher> matchers_;
  std::string held_;
  size_t open_ = 0;  ///< bytes at the end of held_ that could begin a stop string
};

}  // namespace tessera
