// Qwen3-MoE: Qwen3's attention; every layer's MLP is a mixture of experts. The router's softmax runs over all experts,
// the best few are taken and (norm_topk_prob) their weights renormalised. No shared expert.

#include "models/architecture.h"
#include "models/decoder.h"
#include "models/language_config.h"

namespace tessera {
namespace {

Status bad(const JsonReader& text, const std::string& what) { return invalid_input("[" + text.path() + "] " + what); }

Status configure(const JsonReader& text, LanguageConfig& config) {
  TESSERA_RETURN_IF_ERROR(refuse_flag(text, "attention_bias"));
  config.qk_norm = true;
  TESSERA_RETURN_IF_ERROR(read_decoder_config(text, config));
  TESSERA_ASSIGN_OR_RETURN(config.experts, text.integer("num_experts", 1, 4096));
  TESSERA_ASSIGN_OR_RETURN(config.experts_per_token, text.integer("num_experts_per_tok", 1, 256));
  TESSERA_ASSIGN_OR_RETURN(config.ffn, text.integer("moe_intermediate_size", 1, 1 << 20));
  TESSERA_ASSIGN_OR_RETURN(config.normalise_experts, text.boolean_or("norm_topk_prob", false));
  TESSERA_ASSIGN_OR_RETURN(const int64_t sparse_step, text.integer_or("decoder_sparse_step", 1, 1, 1 << 10));
  const Json* dense = text.find("mlp_only_layers");
  if (sparse_step != 1 || (dense && dense->is_array() && !dense->as_array().empty()))
    return bad(text, "decoder_sparse_step and mlp_only_layers ask for dense layers between the mixtures, which is not "
                     "supported");
  if (config.experts_per_token > config.experts)
    return bad(text, "num_experts_per_tok " + std::to_string(config.experts_per_token) + " exceeds num_experts " +
                         std::to_string(config.experts));
  return {};
}

void load_mixture(WeightLoader& load, DecoderLayer& layer) {
  const LanguageConfig& c = load.config().language;
  const Range ffn = decoder_shard(load).ffn;  // every expert is cut the same way: all ranks have work for any choice
  const std::string prefix = language_layer_prefix(load.names(), layer.index) + "mlp.";
  layer.router = load.matrix({{.name = prefix + "gate.weight", .rows = c.experts, .cols = c.hidden}});
  std::vector<std::vector<MatrixPart>> gate_up, down;
  for (int64_t e = 0; e < c.experts; ++e) {
    const std::string expert = prefix + "experts." + std::to_string(e) + ".";
    gate_up.push_back({{expert + "gate_proj.weight", c.ffn, c.hidden, {ffn}, {}},
                       {expert + "up_proj.weight", c.ffn, c.hidden, {ffn}, {}}});
    down.push_back({{.name = expert + "down_proj.weight", .rows = c.hidden, .cols = c.ffn, .col_range = ffn}});
  }
  layer.expert_gate_up = load.experts(gate_up, WeightUse::kGated);
  layer.expert_down = load.experts(down, WeightUse::kLinear);
}

void load_layer(WeightLoader& load, DecoderLayer& layer) {
  load_norms(load, layer, "input_layernorm.weight", "post_attention_layernorm.weight");
  load_split_attention(load, layer);
  load_head_norms(load, layer);
  load_mixture(load, layer);
}

void forward_layer(DecoderStep& step, const DecoderLayer& layer) {
  attention_block(step, layer);
  mixture_block(step, layer);
}

}  // namespace

const LanguageArchitecture kQwen3Moe = {.name = "Qwen3MoeForCausalLM",
                                        .model_type = "qwen3_moe",
                                        .outer = {},
                                        .configure = configure,
                                        .load_layer = load_layer,
                                        .forward_layer = forward_layer};

}  // namespace tessera
