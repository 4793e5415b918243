#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/checkpoint_format.h"
#include "core/dtype.h"
#include "core/json.h"
#include "core/result.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace tessera {

/// InternViT's shape (vision_config of both checkpoint formats).
struct VisionConfig {
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t ffn = 0;
  int64_t image_size = 448;  ///< side of a tile, pixels
  int64_t table_size = 448;  ///< side that the position table was trained for; another one is interpolated at load
  int64_t patch_size = 14;
  NormKind norm = NormKind::kLayer;
  float norm_eps = 1e-6f;
  bool qkv_bias = true;
  bool qk_norm = false;  ///< RMS norm over the full width of q and of k
  int64_t head_dim() const { return hidden / heads; }
  int64_t side() const { return image_size / patch_size; }  ///< patches along an edge
  int64_t tokens() const { return side() * side() + 1; }    ///< per tile, class token included
  int64_t table_side() const { return table_size / patch_size; }
};

/// The language model's shape.
struct LanguageConfig {
  std::string architecture;  ///< "Qwen2ForCausalLM", "InternLM2ForCausalLM", ...: see models/architecture.h
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t ffn = 0;  ///< of one expert for mixtures
  int64_t vocab = 0;
  int64_t max_position = 0;
  float norm_eps = 1e-6f;
  bool tied = false;  ///< no head of its own: after Checkpoint::open what the tensors say, whatever the flags said
  bool qkv_bias = false;
  bool qk_norm = false;  ///< per head, before the rotation
  RopeParams rope;
  int64_t experts = 0;  ///< 0: dense
  int64_t experts_per_token = 0;
  bool normalise_experts = true;
};

/// Everything of config.json (and, for -hf, of the processor files) that the program uses.
struct ModelConfig {
  CheckpointFormat format = CheckpointFormat::kOpenGvlab;
  VisionConfig vision;
  LanguageConfig language;
  DType stored = DType::kBF16;     ///< torch_dtype / dtype
  int select_layer = -1;           ///< hidden state of the tower that is used; 0 is the embeddings, -1 the last layer's
  int pixel_shuffle_version = 2;
  double downsample_ratio = 0.5;
  bool dynamic_image_size = true;
  bool use_thumbnail = true;
  int64_t min_dynamic_patch = 1;
  int64_t max_dynamic_patch = 12;
  std::string template_name;       ///< OpenGVLab format: "internvl2_5", ...; empty for -hf
  std::optional<std::string> system_message;
  std::vector<int32_t> eos_ids;    ///< of generation_config.json
  std::optional<Json> generation;  ///< generation_config.json whole: sampling defaults

  /// Tower layers that have to run for select_layer.
  int64_t vision_layers() const { return select_layer < 0 ? vision.layers + select_layer + 1 : select_layer; }

  /// Language tokens that one tile takes: (side * downsample_ratio)^2.
  int64_t tokens_per_tile() const {
    const auto edge = static_cast<int64_t>(static_cast<double>(vision.side()) * downsample_ratio);
    return edge * edge;
  }
};

/// The JSON files beside the weights that a configuration is read from. Only `config` is always there.
struct ConfigFiles {
  const Json* config = nullptr;
  const Json* generation = nullptr;    ///< generation_config.json
  const Json* preprocessor = nullptr;  ///< preprocessor_config.json; read for -hf only, as the reference does
  const Json* processor = nullptr;     ///< processor_config.json; its nested image_processor wins over the former
};

/// Reads a configuration of either format, told by model_type. Every number is checked against bounds and the numbers
/// against each other; what the program cannot compute as the reference does (an unknown architecture, quantized
/// weights, an unmerged LoRA, the Flash router, an unknown rope type, ...) is refused by its name with what to do.
/// Pure: reads no files. `directory` is only named in errors.
Result<ModelConfig> parse_config(const ConfigFiles& files, const std::string& directory);

}  // namespace tessera
