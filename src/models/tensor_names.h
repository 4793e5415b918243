#pragma once

#include <string>

#include "models/config.h"
#include "models/tensor_store.h"

namespace tessera {

/// Which generation of names a checkpoint uses, told by what it holds. The OpenGVLab format has one generation; -hf
/// files have two: `language_model.model.*`, `vision_tower.*` (4.52-era uploads) and `model.language_model.*`,
/// `model.vision_tower.*` (newer).
struct TensorNames {
  CheckpointFormat format = CheckpointFormat::kOpenGvlab;
  std::string vision;     ///< prefix of the tower's tensors, dot included
  std::string projector;  ///< prefix of the projector's tensors
  std::string language;   ///< prefix of the language model's tensors, the head aside
  std::string head;       ///< the head's tensor, or empty when there is none (tied)
};

/// Errors: no known generation's embedding is there.
Result<TensorNames> find_tensor_names(const TensorStore& tensors, const ModelConfig& config);

/// Tensors of the tower outside its layers, with their prefix.
struct TowerNames {
  std::string class_token, positions, patch_weight, patch_bias;
};
TowerNames tower_names(const TensorNames& names);

/// Tensors of one layer of the tower. Either `qkv` (fused rows q | k | v) or `q`, `k`, `v` are used; names of layers
/// are without ".weight" / ".bias", the others whole.
struct TowerLayerNames {
  std::string qkv, q, k, v;  ///< linear
  std::string proj, fc1, fc2;  ///< linear
  std::string norm1, norm2;    ///< norm
  std::string q_norm, k_norm;  ///< norm
  std::string scale1, scale2;  ///< whole names
};
TowerLayerNames tower_layer_names(const TensorNames& names, int64_t layer);

/// The projector's norm and two linear layers, without ".weight" / ".bias".
struct ProjectorNames {
  std::string norm, linear1, linear2;
};
ProjectorNames projector_names(const TensorNames& names);

/// "language_model.model.layers.3."
std::string language_layer_prefix(const TensorNames& names, int64_t layer);

}  // namespace tessera
