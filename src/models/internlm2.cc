// InternLM2 and 2.5, and InternLM3 as InternVL3-9B stores it: Llama's computation under names of its own, with q, k and
// v fused into `wqkv`, whose rows stand in groups: one group a key-value head, holding its query heads, its k, its v.

#include "models/architecture.h"
#include "models/decoder.h"
#include "models/language_config.h"

namespace tessera {
namespace {

Status configure(const JsonReader& text, LanguageConfig& config) {
  TESSERA_RETURN_IF_ERROR(refuse_flag(text, "bias"));
  return read_decoder_config(text, config);
}

// Rows of wqkv that give q | k | v of this rank's heads. With G query heads a group, group g holds rows
// [g * (G + 2), (g + 1) * (G + 2)) * head_dim: G query heads, k, v.
std::vector<Range> wqkv_rows(const LanguageConfig& c, const AttentionShard& shard) {
  const int64_t group = c.heads / c.kv_heads;
  const auto head_at = [&](int64_t g, int64_t place) {
    return Range{(g * (group + 2) + place) * c.head_dim, c.head_dim};
  };
  std::vector<Range> rows;
  for (int64_t h = shard.heads.begin; h < shard.heads.begin + shard.heads.count; ++h)
    rows.push_back(head_at(h / group, h % group));
  for (const int64_t place : {group, group + 1})
    for (int64_t g = shard.kv_heads.begin; g < shard.kv_heads.begin + shard.kv_heads.count; ++g)
      rows.push_back(head_at(g, place));
  return rows;
}

void load_attention(WeightLoader& load, DecoderLayer& layer) {
  const LanguageConfig& c = load.config().language;
  layer.qkv = load.matrix({{.name = language_layer_prefix(load.names(), layer.index) + "attention.wqkv.weight",
                            .rows = (c.heads + 2 * c.kv_heads) * c.head_dim,
                            .cols = c.hidden,
                            .row_runs = wqkv_rows(c, decoder_shard(load).attention)}});
  load_output(load, layer, "attention.wo.weight");
}

void load_layer(WeightLoader& load, DecoderLayer& layer) {
  load_norms(load, layer, "attention_norm.weight", "ffn_norm.weight");
  load_attention(load, layer);
  load_split_mlp(load, layer, "feed_forward.w1.weight", "feed_forward.w3.weight", "feed_forward.w2.weight");
}

}  // namespace

const LanguageArchitecture kInternLm2 = {.name = "InternLM2ForCausalLM",
                                         .model_type = "",  // -hf files store it as llama
                                         .outer = {.embedding = "tok_embeddings.weight",
                                                   .norm = "norm.weight",
                                                   .head = "language_model.output.weight"},
                                         .configure = configure,
                                         .load_layer = load_layer,
                                         .forward_layer = dense_layer};

}  // namespace tessera
