// Phi-3-mini: Llama's computation with fused storage (`qkv_proj` holds q | k | v, `gate_up_proj` gate | up) and long
// rope: per-dimension factors that switch at the original context length, cos and sin scaled at every length.

#include "models/architecture.h"
#include "models/decoder.h"
#include "models/language_config.h"

namespace tessera {
namespace {

Status configure(const JsonReader& text, LanguageConfig& config) {
  TESSERA_RETURN_IF_ERROR(read_decoder_config(text, config));
  // A window as long as the context is none; a shorter one would need another attention.
  TESSERA_ASSIGN_OR_RETURN(const int64_t window,
                           text.integer_or("sliding_window", config.max_position, 1, int64_t{1} << 40));
  if (window < config.max_position)
    return invalid_input("[" + text.path() + "] sliding_window " + std::to_string(window) +
                         " is shorter than max_position_embeddings " + std::to_string(config.max_position) +
                         ", which is not supported");
  return {};
}

void load_attention(WeightLoader& load, DecoderLayer& layer) {
  const LanguageConfig& c = load.config().language;
  const AttentionShard shard = decoder_shard(load).attention;
  const int64_t k_begin = c.heads * c.head_dim;
  const int64_t v_begin = k_begin + c.kv_heads * c.head_dim;
  const Range q = head_rows(shard.heads, c.head_dim);
  const Range kv = head_rows(shard.kv_heads, c.head_dim);
  layer.qkv = load.matrix({{.name = language_layer_prefix(load.names(), layer.index) + "self_attn.qkv_proj.weight",
                            .rows = (c.heads + 2 * c.kv_heads) * c.head_dim,
                            .cols = c.hidden,
                            .row_runs = {q, {k_begin + kv.begin, kv.count}, {v_begin + kv.begin, kv.count}}}});
  load_output(load, layer, "self_attn.o_proj.weight");
}

void load_mlp(WeightLoader& load, DecoderLayer& layer) {
  const LanguageConfig& c = load.config().language;
  const Range ffn = decoder_shard(load).ffn;
  const std::string prefix = language_layer_prefix(load.names(), layer.index) + "mlp.";
  layer.gate_up = load.matrix({{.name = prefix + "gate_up_proj.weight",
                                .rows = 2 * c.ffn,
                                .cols = c.hidden,
                                .row_runs = {ffn, {c.ffn + ffn.begin, ffn.count}}}},
                              WeightUse::kGated);
  layer.down =
      load.matrix({{.name = prefix + "down_proj.weight", .rows = c.hidden, .cols = c.ffn, .col_range = ffn}});
}

void load_layer(WeightLoader& load, DecoderLayer& layer) {
  load_norms(load, layer, "input_layernorm.weight", "post_attention_layernorm.weight");
  load_attention(load, layer);
  load_mlp(load, layer);
}

}  // namespace

const LanguageArchitecture kPhi3 = {.name = "Phi3ForCausalLM",
                                    .model_type = "phi3",
                                    .outer = {},
                                    .configure = configure,
                                    .load_layer = load_layer,
                                    .forward_layer = dense_layer};

}  // namespace tessera
