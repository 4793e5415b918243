#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/block_pool.h"
#include "runtime/embedding_cache.h"
#include "runtime/logit_edits.h"
#include "runtime/token_request.h"
#include "tessera/engine.h"

namespace tessera {

/// Whose requests run: fairness is between clients, and between one client's texts and pictures.
struct Client {
  struct Kind {
    double served = 0;   ///< work done for requests of the kind
    int64_t active = 0;  ///< those that are not finished
  };

  double served = 0;   ///< work done for it: tokens, and tiles by their tokens
  int64_t active = 0;  ///< its requests that are not finished
  Kind texts, pictures;
};

/// A request from submit() to its last on_finish(). Made by the submitting thread, then the engine's alone.
struct RequestState {
  RequestId id = 0;
  TokenRequest request;
  std::shared_ptr<TokenListener> listener;
  std::vector<Digest> digests;  ///< of the prompt's full blocks
  Digest root{};                ///< start of the digest chain
  Client* client = nullptr;
  Client::Kind* kind = nullptr;  ///< of the client's
  double submitted_s = 0;
  double deadline_s = std::numeric_limits<double>::infinity();  ///< on the engine's clock
  double admitted_s = -1;
  Timings timings;
  int64_t cached_tokens = 0;
  int64_t unfinished = 0;       ///< answers
  bool failed = false;          ///< an answer did not end well

  int64_t prompt_length() const { return static_cast<int64_t>(request.prompt.size()); }
};

/// How an answer ended.
struct Ending {
  FinishReason reason = FinishReason::kStop;
  Status status;
};

/// One answer of a request; before its prompt is computed, one for all n of them. Waiting sequences hold no memory.
struct Sequence {
  std::shared_ptr<RequestState> request;
  int index = 0;                    ///< which answer
  int answers = 1;                  ///< > 1: stands for answers index .. n - 1 until the prompt is computed
  std::vector<int32_t> generated;
  int64_t on_the_way = 0;           ///< tokens behind `generated` that steps in flight sample
  int32_t sampled_row = 0;          ///< the last of them: its row among the step's samples
  int64_t computed = 0;             ///< tokens with keys and values in `blocks`, those that steps in flight write included
  std::vector<BlockRef> blocks;
  std::vector<BlockRef> spare;      ///< for the other answers' copies of a last block that is not full
  std::vector<EmbeddingPin> pins;   ///< beside request.images, while their rows are needed
  int64_t published = 0;            ///< blocks whose digest is known
  Digest chain{};                   ///< digest of the last of them
  uint64_t tenure = 0;              ///< new with each admission: tells block tables apart
  bool preempted = false;
  LogitEdits edits;
  std::unique_ptr<TokenConstraint> constraint;
  std::optional<Ending> ended;

  int64_t prompt_length() const { return request->prompt_length(); }
  int64_t known_length() const { return prompt_length() + static_cast<int64_t>(generated.size()); }
  int64_t length() const { return known_length() + on_the_way; }
  /// Requires: position < known_length().
  int32_t token(int64_t position) const {
    const int64_t prompt = prompt_length();
    return position < prompt ? request->request.prompt[static_cast<size_t>(position)]
                             : generated[static_cast<size_t>(position - prompt)];
  }
  /// The whole prompt's length for its tokens, their own for generated ones; the same when it is computed again.
  int64_t rope_length(int64_t position) const { return std::max(prompt_length(), position + 1); }

  /// Gives all memory back, the last block first, so that the cache evicts a prefix from its end.
  void release() {
    while (!blocks.empty()) blocks.pop_back();
    spare.clear();
    pins.clear();
    computed = published = 0;
  }
};

}  // namespace tessera
