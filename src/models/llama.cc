// Llama, as InternVL ships it: Nous-Hermes-2-Yi-34B, Hermes-2-Theta-Llama-3-70B, and every InternLM backbone in the -hf
// format. No biases, no q/k norm.

#include "models/architecture.h"
#include "models/decoder.h"
#include "models/language_config.h"

namespace tessera {
namespace {

Status configure(const JsonReader& text, LanguageConfig& config) {
  TESSERA_RETURN_IF_ERROR(refuse_flag(text, "attention_bias"));
  TESSERA_RETURN_IF_ERROR(refuse_flag(text, "mlp_bias"));
  return read_decoder_config(text, config);
}

void load_layer(WeightLoader& load, DecoderLayer& layer) {
  load_norms(load, layer, "input_layernorm.weight", "post_attention_layernorm.weight");
  load_split_attention(load, layer);
  load_split_mlp(load, layer, "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight");
}

}  // namespace

const LanguageArchitecture kLlama = {.name = "LlamaForCausalLM",
                                     .model_type = "llama",
                                     .outer = {},
                                     .configure = configure,
                                     .load_layer = load_layer,
                                     .forward_layer = dense_layer};

}  // namespace tessera
