#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/digest.h"
#include "core/token_constraint.h"
#include "ops/sample.h"
#include "tessera/request.h"

namespace tessera {

/// The tiles of one picture in host memory, wherever they lie; they stay while anybody holds this.
struct PictureTiles {
  virtual ~PictureTiles() = default;
  size_t tile_bytes = 0;              ///< of one: 3 * side * side
  std::vector<const uint8_t*> tiles;  ///< u8 [3, side, side] each
};

/// A picture inside a prompt: a run of token positions whose embeddings come from the vision tower.
struct PromptImage {
  Digest key{};                ///< of its tiles' pixels, how they were cut, and cache_salt
  int64_t first = 0;           ///< position of its first <IMG_CONTEXT> in the prompt
  int64_t tokens = 0;          ///< tiles * tokens_per_tile
  int64_t tiles = 0;
  std::shared_ptr<const PictureTiles> pixels;
};

/// A request as the scheduler sees it: ids, no text. Made by the pipeline.
struct TokenRequest {
  std::vector<int32_t> prompt;
  std::vector<PromptImage> images;
  SamplingRow sampling;                          ///< temperature, top_k, top_p, min_p, seed, top_logprobs
  double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> stop_ids;                 ///< empty with ignore_eos
  int64_t max_new_tokens = 0;                    ///< already cut to the session's length
  int n = 1;
  bool logprobs = false;
  std::string cache_salt;
  std::string client;
  int priority = 0;
  std::optional<double> deadline_s;
  /// Masks logits of answer `index`; made per answer. Null: unconstrained.
  std::function<std::unique_ptr<TokenConstraint>()> constraint;
};

/// One new token of one answer.
struct TokenEvent {
  int index = 0;
  int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;
};

/// Receives tokens on the engine's thread. Returning false from on_token ends that answer (a stop string was found).
class TokenListener {
 public:
  virtual ~TokenListener() = default;
  virtual bool on_token(const TokenEvent& event) = 0;
  virtual void on_finish(const Finish& finish) = 0;
};

}  // namespace tessera
