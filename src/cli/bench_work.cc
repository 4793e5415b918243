#include "cli/bench_work.h"

#include <algorithm>

namespace tessera::cli {
namespace {

double d(int64_t v) { return static_cast<double>(v); }

/// Weights of one language layer that a token passes through, and that a step of `tokens` tokens reads.
struct LayerWeights {
  double per_token = 0;
  double read = 0;
};

LayerWeights layer_weights(const LanguageConfig& c, int64_t tokens) {
  const double attention = d(c.hidden) * d(c.heads + 2 * c.kv_heads) * d(c.head_dim) + d(c.heads * c.head_dim) * d(c.hidden);
  const double ffn = 3.0 * d(c.hidden) * d(c.ffn);
  if (c.experts == 0) return {attention + ffn, attention + ffn};
  const double router = d(c.hidden) * d(c.experts);
  const double used = d(std::min(c.experts, tokens * c.experts_per_token));
  return {attention + router + ffn * d(c.experts_per_token), attention + router + ffn * used};
}

}  // namespace

Work vision_work(const ModelConfig& config, int64_t tiles, int64_t element_bytes) {
  const VisionConfig& v = config.vision;
  const LanguageConfig& l = config.language;
  const double tokens = d(v.tokens() * tiles), folded = d(config.tokens_per_tile() * tiles);
  const double layer = 4.0 * d(v.hidden) * d(v.hidden) + 2.0 * d(v.hidden) * d(v.ffn);
  const double patch = 3.0 * d(v.patch_size * v.patch_size) * d(v.hidden);
  const double projector = 4.0 * d(v.hidden) * d(l.hidden) + d(l.hidden) * d(l.hidden);
  Work work;
  work.flops = 2.0 * (tokens * layer * d(v.layers) + tokens * patch + folded * projector) +
               4.0 * tokens * d(v.tokens()) * d(v.hidden) * d(v.layers);
  work.bytes = (layer * d(v.layers) + patch + projector) * d(element_bytes);
  return work;
}

Work prefill_work(const ModelConfig& config, int64_t tokens, int64_t element_bytes) {
  const LanguageConfig& l = config.language;
  const LayerWeights layer = layer_weights(l, tokens);
  const double head = d(l.vocab) * d(l.hidden);
  Work work;
  work.flops = 2.0 * (d(tokens) * layer.per_token * d(l.layers) + head) +
               2.0 * d(tokens) * d(tokens + 1) * d(l.heads * l.head_dim) * d(l.layers);
  work.bytes = (layer.read * d(l.layers) + head) * d(element_bytes);
  return work;
}

Work decode_work(const ModelConfig& config, int64_t batch, int64_t context, int64_t element_bytes) {
  const LanguageConfig& l = config.language;
  const LayerWeights layer = layer_weights(l, batch);
  const double head = d(l.vocab) * d(l.hidden);
  Work work;
  work.flops = d(batch) * (2.0 * (layer.per_token * d(l.layers) + head) +
                           4.0 * d(context) * d(l.heads * l.head_dim) * d(l.layers));
  work.bytes = (layer.read * d(l.layers) + head + d(batch * context) * 2.0 * d(l.kv_heads * l.head_dim) * d(l.layers)) *
               d(element_bytes);
  return work;
}

double floor_seconds(const Work& work, const DeviceSpeed& speed) {
  const double compute = speed.matrix_flops > 0 ? work.flops / speed.matrix_flops : 0;
  const double memory = speed.read_bytes_per_s > 0 ? work.bytes / speed.read_bytes_per_s : 0;
  return std::max(compute, memory);
}

}  // namespace tessera::cli
