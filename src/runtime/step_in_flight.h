#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "runtime/engine_state.h"

namespace tessera {

/// A step that was handed to the stream: what is to be booked when it is over. Sequences that end before are forgotten; what
/// it computes for them is dropped.
struct StepInFlight {
  struct Item {
    Sequence* sequence = nullptr;  ///< null: has ended
    int64_t computed = 0;          ///< its tokens with keys and values when the step is over
    int answers = 0;               ///< rows among the samples; 0: none
    bool decoding = false;
  };

  bool launched = false;
  int turn = 0;  ///< of mirrors and marks
  std::vector<Item> items;
  int64_t decodes = 0;
  int64_t prompt_tokens = 0;
  double prompt_pairs = 0;    ///< see StepPlan
  int64_t tiles = 0;          ///< of the vision slice; 0: none
  int64_t vision_layers = 0;
  std::vector<Sequence*> seeing;  ///< whose pictures it encodes

  void begin(int with_turn) {
    launched = true;
    turn = with_turn;
    items.clear();
    seeing.clear();
    decodes = prompt_tokens = tiles = vision_layers = 0;
    prompt_pairs = 0;
  }
  void forget_ended() {
    for (Item& item : items)
      if (item.sequence && item.sequence->ended) item.sequence = nullptr;
    std::erase_if(seeing, [](const Sequence* s) { return s->ended.has_value(); });
  }
  /// Whether anybody waits for its tokens.
  bool wanted() const {
    return !seeing.empty() || std::any_of(items.begin(), items.end(), [](const Item& item) { return item.sequence != nullptr; });
  }
};

}  // namespace tessera
