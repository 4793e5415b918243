#include "runtime/admission.h"

#include <string>

#include "runtime/logit_edits.h"
#include "runtime/scheduler.h"

namespace tessera {
namespace {

std::string n(int64_t v) { return std::to_string(v); }

Status check_ids(const TokenRequest& r, int64_t vocab) {
  if (r.prompt.empty()) return invalid_input("the prompt is empty");
  for (const int32_t id : r.prompt)
    if (id < 0 || id >= vocab) return invalid_input("token id " + n(id) + " is outside the vocabulary of " + n(vocab));
  if (static_cast<int64_t>(r.logit_bias.size()) > kMaxLogitBias)
    return invalid_input("logit_bias has " + n(static_cast<int64_t>(r.logit_bias.size())) + " entries; at most " + n(kMaxLogitBias));
  for (const auto& [id, bias] : r.logit_bias)
    if (id < 0 || id >= vocab)
      return invalid_input("logit_bias names token id " + n(id) + ", outside the vocabulary of " + n(vocab));
  if (r.sampling.top_logprobs < 0 || r.sampling.top_logprobs > kMaxTopLogprobs)
    return invalid_input("top_logprobs " + n(r.sampling.top_logprobs) + " is not within 0.." + n(kMaxTopLogprobs));
  return {};
}

Status check_pictures(const TokenRequest& r, const EngineShape& shape, const ModelConfig& config) {
  const auto prompt = static_cast<int64_t>(r.prompt.size());
  const auto tile_bytes = static_cast<size_t>(3 * config.vision.image_size * config.vision.image_size);
  int64_t end = 0;
  for (const PromptImage& image : r.images) {
    if (image.tiles < 1 || image.tokens != image.tiles * config.tokens_per_tile() || image.first < end ||
        image.tokens > prompt - image.first)
      return invalid_input("a picture of " + n(image.tiles) + " tiles and " + n(image.tokens) + " tokens at " +
                           n(image.first) + " does not fit its place in a prompt of " + n(prompt) + " tokens");
    if (!image.pixels || static_cast<int64_t>(image.pixels->tiles.size()) != image.tiles || image.pixels->tile_bytes != tile_bytes)
      return invalid_input("a picture's pixels are not " + n(image.tiles) + " tiles of " + std::to_string(tile_bytes) + " bytes");
    if (image.tiles > shape.embedding_tiles)
      return does_not_fit("a picture of " + n(image.tiles) + " tiles exceeds the embedding cache of " +
                          n(shape.embedding_tiles) + " tiles; lower --max-dynamic-patch or raise --embedding-cache");
    end = image.first + image.tokens;
  }
  return {};
}

}  // namespace

Status check_token_request(const TokenRequest& r, const EngineShape& shape, const ModelConfig& config) {
  TESSERA_RETURN_IF_ERROR(check_ids(r, config.language.vocab));
  const auto prompt = static_cast<int64_t>(r.prompt.size());
  if (prompt + 1 > shape.session_len)
    return does_not_fit("the prompt of " + n(prompt) + " tokens and one new token exceed the session of " +
                        n(shape.session_len) + "; raise --session-len");
  if (r.max_new_tokens < 1) return invalid_input("max_new_tokens is " + n(r.max_new_tokens) + "; at least 1");
  if (r.max_new_tokens > shape.session_len - prompt)
    return does_not_fit("the prompt of " + n(prompt) + " tokens and " + n(r.max_new_tokens) +
                        " new ones exceed the session of " + n(shape.session_len) + "; raise --session-len");
  TESSERA_RETURN_IF_ERROR(check_pictures(r, shape, config));
  if (r.n < 1 || r.n > shape.max_sequences)
    return does_not_fit("n = " + n(r.n) + " answers do not fit a batch of " + n(shape.max_sequences) +
                        " sequences; raise --max-batch-size");
  const int64_t alone = (prompt + r.max_new_tokens + shape.block_size - 1) / shape.block_size;
  const int64_t start = admission_blocks({.length = prompt, .answers = r.n}, shape.block_size);
  if (std::max(alone, start) > shape.kv_blocks)
    return does_not_fit("the prompt of " + n(prompt) + " tokens with " + n(r.max_new_tokens) + " new ones needs " +
                        n(std::max(alone, start)) + " KV blocks of " + n(shape.block_size) + " tokens; the cache has " +
                        n(shape.kv_blocks) + "; raise --kv-cache-tokens");
  return {};
}

}  // namespace tessera
