// Qwen2 and Qwen2.5: grouped-query attention with biases on q, k and v, SwiGLU, RMS norms.

#include "models/architecture.h"
#include "models/decoder.h"
#include "models/language_config.h"

namespace tessera {
namespace {

Status configure(const JsonReader& text, LanguageConfig& config) {
  config.qkv_bias = true;
  return read_decoder_config(text, config);
}

void load_layer(WeightLoader& load, DecoderLayer& layer) {
  load_norms(load, layer, "input_layernorm.weight", "post_attention_layernorm.weight");
  load_split_attention(load, layer);
  load_split_bias(load, layer);
  load_split_mlp(load, layer, "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight");
}

}  // namespace

const LanguageArchitecture kQwen2 = {.name = "Qwen2ForCausalLM",
                                     .model_type = "qwen2",
                                     .outer = {},
                                     .configure = configure,
                                     .load_layer = load_layer,
                                     .forward_layer = dense_layer};

}  // namespace tessera
