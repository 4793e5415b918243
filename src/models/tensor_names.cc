#include "models/tensor_names.h"

#include <array>

#include "models/architecture.h"

namespace tessera {

Result<TensorNames> find_tensor_names(const TensorStore& tensors, const ModelConfig& config) {
  const LanguageArchitecture* architecture = find_architecture(config.language.architecture);
  TESSERA_CHECK(architecture != nullptr, "architecture " + config.language.architecture);
  static const std::array<TensorNames, 3> kGenerations = {{
      {CheckpointFormat::kOpenGvlab, "vision_model.", "mlp1.", "language_model.model.", ""},
      {CheckpointFormat::kHf, "vision_tower.", "multi_modal_projector.", "language_model.model.", ""},
      {CheckpointFormat::kHf, "model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", ""},
  }};
  for (const TensorNames& generation : kGenerations) {
    // The class token tells both formats and, among -hf files, both generations apart.
    if (!tensors.contains(tower_names(generation).class_token)) continue;
    TensorNames names = generation;
    for (const char* head : {"language_model.lm_head.weight", "language_model.output.weight", "lm_head.weight"})
      if (names.head.empty() && tensors.contains(head)) names.head = head;
    if (!tensors.contains(names.language + architecture->outer.embedding))
      return invalid_input("tensor " + names.language + architecture->outer.embedding +
                           " is absent, which " + config.language.architecture + " begins with");
    return names;
  }
  return invalid_input(
      "the vision tower's tensor vision_model.embeddings.class_embedding (OpenGVLab format), "
      "vision_tower.embeddings.cls_token or model.vision_tower.embeddings.cls_token (-hf format) is absent");
}

TowerNames tower_names(const TensorNames& names) {
  const std::string p = names.vision + "embeddings.";
  if (names.format == CheckpointFormat::kOpenGvlab)
    return {p + "class_embedding", p + "position_embedding", p + "patch_embedding.weight", p + "patch_embedding.bias"};
  return {p + "cls_token", p + "position_embeddings", p + "patch_embeddings.projection.weight",
          p + "patch_embeddings.projection.bias"};
}

TowerLayerNames tower_layer_names(const TensorNames& names, int64_t layer) {
  TowerLayerNames n;
  if (names.format == CheckpointFormat::kOpenGvlab) {
    const std::string p = names.vision + "encoder.layers." + std::to_string(layer) + ".";
    n.qkv = p + "attn.qkv";
    n.proj = p + "attn.proj";
    n.q_norm = p + "attn.q_norm";
    n.k_norm = p + "attn.k_norm";
    n.norm1 = p + "norm1";
    n.norm2 = p + "norm2";
    n.scale1 = p + "ls1";
    n.scale2 = p + "ls2";
    n.fc1 = p + "mlp.fc1";
    n.fc2 = p + "mlp.fc2";
    return n;
  }
  const std::string p = names.vision + "encoder.layer." + std::to_string(layer) + ".";
  n.q = p + "attention.q_proj";
  n.k = p + "attention.k_proj";
  n.v = p + "attention.v_proj";
  n.proj = p + "attention.projection_layer";
  n.q_norm = p + "attention.q_norm";
  n.k_norm = p + "attention.k_norm";
  n.norm1 = p + "layernorm_before";
  n.norm2 = p + "layernorm_after";
  n.scale1 = p + "lambda_1";
  n.scale2 = p + "lambda_2";
  n.fc1 = p + "mlp.fc1";
  n.fc2 = p + "mlp.fc2";
  return n;
}

ProjectorNames projector_names(const TensorNames& names) {
  const std::string& p = names.projector;
  if (names.format == CheckpointFormat::kOpenGvlab) return {p + "0", p + "1", p + "3"};
  return {p + "layer_norm", p + "linear_1", p + "linear_2"};
}

std::string language_layer_prefix(const TensorNames& names, int64_t layer) {
  return names.language + "layers." + std::to_string(layer) + ".";
}

}  // namespace tessera
