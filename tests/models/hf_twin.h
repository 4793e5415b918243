#pragma once

#include "tests/models/checkpoint_folder.h"

namespace tessera::testing {

inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  if (const size_t at = text.find(from); at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

inline Json hf_vision_config(const Json& from, int64_t image_size) {
  Json v = Json::object();
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "norm_type",
                          "layer_norm_eps", "hidden_act"})
    v.set(key, *from.find(key));
  v.set("model_type", "internvl_vision");
  v.set("attention_bias", *from.find("qkv_bias"));
  v.set("use_qk_norm", *from.find("qk_normalization"));
  v.set("image_size", Json(Json::Array{Json(image_size), Json(image_size)}));
  v.set("patch_size", Json(Json::Array{*from.find("patch_size"), *from.find("patch_size")}));
  return v;
}

inline Json hf_config(const CheckpointFolder& folder, bool newer) {
  const Json& llm = *folder.config.find("llm_config");
  const std::string& architecture = llm.find("architectures")->as_array()[0].as_string();
  Json text = llm;
  text.set("model_type", architecture == "Qwen2ForCausalLM"   ? "qwen2"
                         : architecture == "Qwen3ForCausalLM" ? "qwen3"
                                                              : "llama");
  if (newer) {  // the newest spelling of rope, and of the dtype
    Json rope = Json::object();
    rope.set("rope_theta", *llm.find("rope_theta"));
    const Json* scaling = llm.find("rope_scaling");
    rope.set("rope_type", scaling && scaling->is_object() ? *scaling->find("type") : Json("default"));
    if (scaling && scaling->is_object()) rope.set("factor", *scaling->find("factor"));
    text.set("rope_parameters", rope);
    std::erase_if(text.as_object(), [](const auto& m) { return m.first == "rope_theta" || m.first == "rope_scaling"; });
  }
  Json config = Json::object();
  config.set("architectures", Json(Json::Array{Json("InternVLForConditionalGeneration")}));
  config.set("model_type", "internvl");
  config.set("downsample_ratio", 0.5);
  config.set("image_token_id", 0);
  config.set("vision_feature_layer", *folder.config.find("select_layer"));
  config.set(newer ? "dtype" : "torch_dtype", *folder.config.find("torch_dtype"));
  config.set("text_config", std::move(text));
  config.set("vision_config",
             hf_vision_config(*folder.config.find("vision_config"), folder.config.find("force_image_size")->as_int64()));
  return config;
}

inline std::string hf_vision_name(std::string name) {
  static const std::vector<std::pair<std::string, std::string>> kRules = {
      {"embeddings.class_embedding", "embeddings.cls_token"},
      {"embeddings.position_embedding", "embeddings.position_embeddings"},
      {"embeddings.patch_embedding.", "embeddings.patch_embeddings.projection."},
      {"encoder.layers.", "encoder.layer."},
      {"attn.proj.", "attention.projection_layer."},
      {"attn.q_norm.", "attention.q_norm."},
      {"attn.k_norm.", "attention.k_norm."},
      {"norm1.", "layernorm_before."},
      {"norm2.", "layernorm_after."},
      {"ls1", "lambda_1"},
      {"ls2", "lambda_2"}};
  for (const auto& [from, to] : kRules) name = replaced(name, from, to);
  return name;
}

/// The -hf twin of an OpenGVLab folder whose language tensors have the names that both formats share. `newer`:
/// `model.language_model.*`, `model.vision_tower.*` and `lm_head.weight` instead of the 4.52-era names.
inline CheckpointFolder hf_twin(const CheckpointFolder& folder, bool newer) {
  const std::string model = newer ? "model." : "";
  CheckpointFolder twin;
  twin.config = hf_config(folder, newer);
  for (const auto& item : folder.items) {
    CheckpointFolder::Item renamed = item;
    if (item.name.rfind("vision_model.", 0) == 0) {
      const std::string name = model + "vision_tower." + hf_vision_name(item.name.substr(13));
      if (name.find("attn.qkv.") != std::string::npos) {  // split into three
        const int64_t third = item.shape[0] / 3;
        for (int64_t i = 0; i < 3; ++i)
          twin.items.push_back(rows_of(
              item, replaced(name, "attn.qkv.", std::string("attention.") + "qkv"[i] + "_proj."), i * third, third));
        continue;
      }
      renamed.name = name;
    } else if (item.name.rfind("mlp1.", 0) == 0) {
      static const std::vector<std::pair<std::string, std::string>> kLayers = {
          {"mlp1.0.", "layer_norm."}, {"mlp1.1.", "linear_1."}, {"mlp1.3.", "linear_2."}};
      for (const auto& [from, to] : kLayers) renamed.name = replaced(renamed.name, from, to);
      renamed.name = model + "multi_modal_projector." + renamed.name;
    } else if (newer) {
      renamed.name = item.name == "language_model.lm_head.weight"
                         ? "lm_head.weight"
                         : replaced(item.name, "language_model.model.", "model.language_model.");
    }
    twin.items.push_back(std::move(renamed));
  }
  return twin;
}

}  // namespace tessera::testing
