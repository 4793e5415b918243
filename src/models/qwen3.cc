// Qwen3: no biases; q and k are RMS-normed per head before the rotation; head_dim is a number of its own, so that
// heads * head_dim is not the hidden size.

#include "models/architecture.h"
#include "models/decoder.h"
#include "models/language_config.h"

namespace tessera {
namespace {

Status configure(const JsonReader& text, LanguageConfig& config) {
  TESSERA_RETURN_IF_ERROR(refuse_flag(text, "attention_bias"));
  config.qk_norm = true;
  return read_decoder_config(text, config);
}

void load_layer(WeightLoader& load, DecoderLayer& layer) {
  load_norms(load, layer, "input_layernorm.weight", "post_attention_layernorm.weight");
  load_split_attention(load, layer);
  load_head_norms(load, layer);
  load_split_mlp(load, layer, "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight");
}

}  // namespace

const LanguageArchitecture kQwen3 = {.name = "Qwen3ForCausalLM",
                                     .model_type = "qwen3",
                                     .outer = {},
                                     .configure = configure,
                                     .load_layer = load_layer,
                                     .forward_layer = dense_layer};

}  // namespace tessera
