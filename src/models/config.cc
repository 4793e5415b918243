#include "models/config.h"

#include <algorithm>

#include "models/architecture.h"

namespace tessera {
namespace {

constexpr int64_t kMaxHidden = 1 << 16;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxFfn = 1 << 20;
constexpr int64_t kMaxImage = 8192;  // the vision room's own bound for a tile's side
constexpr int64_t kMaxPatch = 256;
constexpr int64_t kMaxTiles = 128;

Status bad(const JsonReader& at, const std::string& what) { return invalid_input("[" + at.path() + "] " + what); }

std::string quoted(const std::string& text) { return Json(text.substr(0, 80)).dump(); }

Result<JsonReader> section(const JsonReader& root, std::string_view key) {
  const Json* value = root.find(key);
  if (!value || !value->is_object()) return bad(root, std::string(key) + " is missing or no object");
  return JsonReader(*value, root.path() + ": " + std::string(key));
}

// ---- what is not ready to run, by name

Status refuse_quantized(const JsonReader& at) {
  const Json* value = at.find("quantization_config");
  if (!value) return {};
  const Json* method = value->find("quant_method");
  const std::string name = method && method->is_string() ? quoted(method->as_string()) : "of unknown method";
  return bad(at, "quantization_config (" + name +
                     ") says that the weights are quantized, which is not supported; take the release without it "
                     "(the name without -AWQ)");
}

Status refuse_unready(const JsonReader& root) {
  TESSERA_RETURN_IF_ERROR(refuse_quantized(root));
  for (const char* key : {"llm_config", "text_config", "vision_config"})
    if (const Json* value = root.find(key); value && value->is_object())
      TESSERA_RETURN_IF_ERROR(refuse_quantized(JsonReader(*value, root.path() + ": " + key)));
  for (const char* key : {"use_backbone_lora", "use_llm_lora"}) {
    TESSERA_ASSIGN_OR_RETURN(const int64_t rank, root.integer_or(key, 0, 0, 1 << 20));
    if (rank > 0)
      return bad(root, std::string(key) + " is " + std::to_string(rank) +
                           ": the LoRA is not merged into the weights; merge it first (tools/merge_lora.py of the "
                           "InternVL repository) and load the result");
  }
  for (const char* key : {"flash_mode", "flash_relative_threshold", "flash_absolute_threshold"})
    if (root.find(key))
      return bad(root, std::string(key) + ": InternVL3.5-Flash's visual router is not supported; take the release "
                                          "without -Flash");
  if (root.find("image_fold")) return bad(root, "image_fold is set, which is not supported");
  return {};
}

// ---- values that both formats share

Result<std::optional<DType>> read_dtype(const JsonReader& at) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (!at.find(key)) continue;
    TESSERA_ASSIGN_OR_RETURN(std::string name, at.string(key));
    if (name.rfind("torch.", 0) == 0) name = name.substr(6);
    if (name == "bfloat16") return std::optional(DType::kBF16);
    if (name == "float16") return std::optional(DType::kF16);
    if (name == "float32") return std::optional(DType::kF32);
    if (name == "auto") return std::optional<DType>();
    return bad(at, std::string(key) + " is " + quoted(name) + "; expected bfloat16, float16 or float32");
  }
  return std::optional<DType>();
}

// An integer, or in -hf files a list [height, width] of two equal ones.
Result<int64_t> read_side(const JsonReader& at, std::string_view key, int64_t fallback, int64_t maximum) {
  const Json* value = at.find(key);
  if (!value || !value->is_array()) return at.integer_or(key, fallback, 1, maximum);
  const auto& list = value->as_array();
  if (list.size() != 2 || !list[0].fits_int64() || !list[1].fits_int64() || list[0].as_int64() < 1 ||
      list[0].as_int64() > maximum || list[0].as_int64() != list[1].as_int64())
    return bad(at, std::string(key) + " is " + value->dump().substr(0, 60) + "; expected [n, n] with n in [1, " +
                       std::to_string(maximum) + "]");
  return list[0].as_int64();
}

Result<NormKind> read_norm(const JsonReader& at, const char* fallback) {
  TESSERA_ASSIGN_OR_RETURN(const std::string name, at.string_or("norm_type", fallback));
  if (name == "layer_norm") return NormKind::kLayer;
  if (name == "rms_norm") return NormKind::kRms;
  return bad(at, "norm_type is " + quoted(name) + "; expected layer_norm or rms_norm");
}

Status expect_string(const JsonReader& at, std::string_view key, const std::string& expected) {
  TESSERA_ASSIGN_OR_RETURN(const std::string given, at.string_or(key, expected));
  if (given == expected) return {};
  return bad(at, std::string(key) + " is " + quoted(given) + "; expected " + quoted(expected));
}

Status expect_flag(const JsonReader& at, std::string_view key, bool expected) {
  TESSERA_ASSIGN_OR_RETURN(const bool given, at.boolean_or(key, expected));
  if (given == expected) return {};
  return bad(at, std::string(key) + " is " + (given ? "true" : "false") + ", which is not supported");
}

struct VisionDefaults {
  int64_t hidden, layers, heads, ffn, image;
  const char* norm;
  bool qkv_bias, qk_norm;
  const char *qkv_bias_key, *qk_norm_key;
};
// The class defaults of the two reference implementations: the OpenGVLab one describes the 6B trunk.
constexpr VisionDefaults kOpenGvlabVision = {3200, 48,   25,         12800,            224, "rms_norm", false,
                                             true, "qkv_bias", "qk_normalization"};
constexpr VisionDefaults kHfVision = {1024,  24,         16, 4096, 448, "layer_norm", false, false, "attention_bias",
                                      "use_qk_norm"};

Status read_vision(const JsonReader& at, const VisionDefaults& defaults, VisionConfig& v) {
  TESSERA_ASSIGN_OR_RETURN(v.hidden, at.integer_or("hidden_size", defaults.hidden, 1, kMaxHidden));
  TESSERA_ASSIGN_OR_RETURN(v.layers, at.integer_or("num_hidden_layers", defaults.layers, 1, kMaxLayers));
  TESSERA_ASSIGN_OR_RETURN(v.heads, at.integer_or("num_attention_heads", defaults.heads, 1, 1024));
  TESSERA_ASSIGN_OR_RETURN(v.ffn, at.integer_or("intermediate_size", defaults.ffn, 1, kMaxFfn));
  TESSERA_ASSIGN_OR_RETURN(v.patch_size, read_side(at, "patch_size", 14, kMaxPatch));
  TESSERA_ASSIGN_OR_RETURN(v.table_size, read_side(at, "image_size", defaults.image, kMaxImage));
  TESSERA_ASSIGN_OR_RETURN(v.norm, read_norm(at, defaults.norm));
  TESSERA_ASSIGN_OR_RETURN(const double eps, at.number_or("layer_norm_eps", 1e-6, 1e-12, 1));
  v.norm_eps = static_cast<float>(eps);
  TESSERA_ASSIGN_OR_RETURN(v.qkv_bias, at.boolean_or(defaults.qkv_bias_key, defaults.qkv_bias));
  TESSERA_ASSIGN_OR_RETURN(v.qk_norm, at.boolean_or(defaults.qk_norm_key, defaults.qk_norm));
  TESSERA_ASSIGN_OR_RETURN(const int64_t channels, at.integer_or("num_channels", 3, 1, 1024));
  if (channels != 3) return bad(at, "num_channels is " + std::to_string(channels) + "; expected 3");
  TESSERA_RETURN_IF_ERROR(expect_string(at, "hidden_act", "gelu"));
  if (v.hidden % v.heads != 0)
    return bad(at, "hidden_size " + std::to_string(v.hidden) + " is no multiple of num_attention_heads " +
                       std::to_string(v.heads));
  if (v.table_size % v.patch_size != 0)
    return bad(at, "image_size " + std::to_string(v.table_size) + " is no multiple of patch_size " +
                       std::to_string(v.patch_size));
  return {};
}

// Checks that concern tower, tiles and language model together.
Status check_whole(const JsonReader& root, const ModelConfig& c) {
  const VisionConfig& v = c.vision;
  if (v.image_size % v.patch_size != 0)
    return bad(root, "the tile side " + std::to_string(v.image_size) + " is no multiple of patch_size " +
                         std::to_string(v.patch_size));
  if (c.downsample_ratio != 0.5)
    return bad(root, "downsample_ratio is " + Json(c.downsample_ratio).dump() + "; expected 0.5");
  if (v.side() % 2 != 0)
    return bad(root, "a tile has " + std::to_string(v.side()) + " patches a side, which downsample_ratio 0.5 does not "
                     "divide; image_size must be a multiple of " + std::to_string(2 * v.patch_size));
  if (c.vision_layers() < 0 || c.vision_layers() > v.layers)
    return bad(root, "the vision tower has " + std::to_string(v.layers) + " layers; select_layer (vision_feature_layer) " +
                         std::to_string(c.select_layer) + " is not among them");
  if (c.min_dynamic_patch > c.max_dynamic_patch)
    return bad(root, "min_dynamic_patch " + std::to_string(c.min_dynamic_patch) + " exceeds max_dynamic_patch " +
                         std::to_string(c.max_dynamic_patch));
  return {};
}

Status read_generation(const Json* generation, const std::string& path, ModelConfig& c) {
  if (!generation) return {};
  if (!generation->is_object()) return invalid_input("[" + path + "] is no JSON object");
  c.generation = *generation;
  const Json* eos = generation->find("eos_token_id");
  if (!eos || eos->is_null()) return {};
  const Json::Array one = {*eos};
  for (const Json& id : eos->is_array() ? eos->as_array() : one) {
    if (!id.fits_int64() || id.as_int64() < 0 || id.as_int64() >= c.language.vocab)
      return invalid_input("[" + path + "] eos_token_id holds " + id.dump().substr(0, 40) + "; expected ids in [0, " +
                           std::to_string(c.language.vocab) + ")");
    c.eos_ids.push_back(static_cast<int32_t>(id.as_int64()));
  }
  return {};
}

Status set_stored_dtype(const JsonReader& root, const JsonReader& text, ModelConfig& c) {
  TESSERA_ASSIGN_OR_RETURN(std::optional<DType> stored, read_dtype(root));
  if (!stored) {
    TESSERA_ASSIGN_OR_RETURN(stored, read_dtype(text));
  }
  c.stored = stored.value_or(DType::kBF16);
  return {};
}

Status unsupported_language(const JsonReader& text, const std::string& key, const std::string& given) {
  if (given == "GptOssForCausalLM" || given == "gpt_oss")
    return bad(text, key + " is " + quoted(given) + ": GPT-OSS language models are not supported; take another release");
  return bad(text, key + " is " + quoted(given) + ", which is not supported; supported are " + architecture_names());
}

// ---- OpenGVLab format

Status configure_opengvlab_language(const JsonReader& text, LanguageConfig& language) {
  const Json* names = text.find("architectures");
  if (!names || !names->is_array() || names->as_array().empty() || !names->as_array()[0].is_string())
    return bad(text, "architectures is missing; it names the language model");
  const std::string& name = names->as_array()[0].as_string();
  const LanguageArchitecture* architecture = find_architecture(name);
  if (!architecture) return unsupported_language(text, "architectures", name);
  language.architecture = architecture->name;
  return architecture->configure(text, language);
}

Status parse_opengvlab(const JsonReader& root, ModelConfig& c) {
  c.format = CheckpointFormat::kOpenGvlab;
  TESSERA_ASSIGN_OR_RETURN(const JsonReader text, section(root, "llm_config"));
  TESSERA_ASSIGN_OR_RETURN(const JsonReader vision, section(root, "vision_config"));
  TESSERA_RETURN_IF_ERROR(configure_opengvlab_language(text, c.language));
  TESSERA_RETURN_IF_ERROR(read_vision(vision, kOpenGvlabVision, c.vision));
  TESSERA_RETURN_IF_ERROR(set_stored_dtype(root, text, c));
  TESSERA_ASSIGN_OR_RETURN(c.vision.image_size,
                           root.integer_or("force_image_size", c.vision.table_size, 1, kMaxImage));
  TESSERA_ASSIGN_OR_RETURN(c.downsample_ratio, root.number_or("downsample_ratio", 0.5, 1e-3, 1));
  TESSERA_ASSIGN_OR_RETURN(const int64_t select, root.integer_or("select_layer", -1, -kMaxLayers, kMaxLayers));
  c.select_layer = static_cast<int>(select);
  TESSERA_ASSIGN_OR_RETURN(const std::string shuffle, root.string_or("ps_version", "v1"));
  if (shuffle != "v1" && shuffle != "v2") return bad(root, "ps_version is " + quoted(shuffle) + "; expected v1 or v2");
  c.pixel_shuffle_version = shuffle == "v1" ? 1 : 2;
  TESSERA_ASSIGN_OR_RETURN(c.dynamic_image_size, root.boolean_or("dynamic_image_size", false));
  TESSERA_ASSIGN_OR_RETURN(c.use_thumbnail, root.boolean_or("use_thumbnail", false));
  TESSERA_ASSIGN_OR_RETURN(c.min_dynamic_patch, root.integer_or("min_dynamic_patch", 1, 1, kMaxTiles));
  TESSERA_ASSIGN_OR_RETURN(c.max_dynamic_patch, root.integer_or("max_dynamic_patch", 6, 1, kMaxTiles));
  TESSERA_ASSIGN_OR_RETURN(c.template_name, root.string("template"));
  if (root.find("system_message")) {
    TESSERA_ASSIGN_OR_RETURN(c.system_message, root.string("system_message"));
  }
  TESSERA_ASSIGN_OR_RETURN(const bool tied, root.boolean_or("tie_word_embeddings", false));
  c.language.tied = c.language.tied || tied;
  return {};
}

// ---- -hf format

// The image processor's settings: nested in processor_config.json (newest files) or preprocessor_config.json.
const Json* image_processor(const ConfigFiles& files) {
  if (files.processor)
    if (const Json* nested = files.processor->find("image_processor"); nested && nested->is_object()) return nested;
  return files.preprocessor && files.preprocessor->is_object() ? files.preprocessor : nullptr;
}

Status read_image_processor(const ConfigFiles& files, const std::string& directory, ModelConfig& c) {
  const Json* settings = image_processor(files);
  if (!settings) return {};
  const JsonReader at(*settings, directory + "/preprocessor_config.json");
  TESSERA_ASSIGN_OR_RETURN(c.min_dynamic_patch, at.integer_or("min_patches", 1, 1, kMaxTiles));
  TESSERA_ASSIGN_OR_RETURN(c.max_dynamic_patch, at.integer_or("max_patches", 12, 1, kMaxTiles));
  const Json* size = at.find("size");
  if (!size || !size->is_object()) return {};
  const JsonReader sides(*size, at.path() + ": size");
  TESSERA_ASSIGN_OR_RETURN(const int64_t height, sides.integer_or("height", c.vision.image_size, 1, kMaxImage));
  TESSERA_ASSIGN_OR_RETURN(const int64_t width, sides.integer_or("width", height, 1, kMaxImage));
  if (height != width)
    return bad(at, "size is " + std::to_string(height) + " x " + std::to_string(width) + "; tiles must be square");
  c.vision.image_size = height;
  return {};
}

Status configure_hf_language(const JsonReader& text, LanguageConfig& language) {
  TESSERA_ASSIGN_OR_RETURN(const std::string type, text.string("model_type"));
  const LanguageArchitecture* architecture = find_architecture_by_type(type);
  if (!architecture) return unsupported_language(text, "model_type", type);
  language.architecture = architecture->name;
  return architecture->configure(text, language);
}

Status parse_hf(const JsonReader& root, const ConfigFiles& files, const std::string& directory, ModelConfig& c) {
  c.format = CheckpointFormat::kHf;
  TESSERA_ASSIGN_OR_RETURN(const JsonReader text, section(root, "text_config"));
  TESSERA_ASSIGN_OR_RETURN(const JsonReader vision, section(root, "vision_config"));
  TESSERA_RETURN_IF_ERROR(configure_hf_language(text, c.language));
  TESSERA_RETURN_IF_ERROR(read_vision(vision, kHfVision, c.vision));
  TESSERA_RETURN_IF_ERROR(expect_flag(vision, "use_mean_pooling", true));  // false would add a final norm
  TESSERA_RETURN_IF_ERROR(expect_flag(vision, "use_absolute_position_embeddings", true));
  TESSERA_RETURN_IF_ERROR(expect_string(root, "projector_hidden_act", "gelu"));
  TESSERA_RETURN_IF_ERROR(expect_string(root, "vision_feature_select_strategy", "default"));
  TESSERA_RETURN_IF_ERROR(set_stored_dtype(root, text, c));
  c.vision.image_size = c.vision.table_size;
  TESSERA_ASSIGN_OR_RETURN(c.downsample_ratio, root.number_or("downsample_ratio", 0.5, 1e-3, 1));
  TESSERA_ASSIGN_OR_RETURN(const int64_t select, root.integer_or("vision_feature_layer", -1, -kMaxLayers, kMaxLayers));
  c.select_layer = static_cast<int>(select);
  TESSERA_RETURN_IF_ERROR(read_image_processor(files, directory, c));
  TESSERA_ASSIGN_OR_RETURN(const bool tied, root.boolean_or("tie_word_embeddings", false));
  c.language.tied = c.language.tied || tied;
  return {};
}

// The number of image tokens a tile is stored in -hf files: it must be what the shapes give.
Status check_tile_tokens(const JsonReader& root, const ModelConfig& c) {
  TESSERA_ASSIGN_OR_RETURN(const int64_t stored,
                           root.integer_or("image_seq_length", c.tokens_per_tile(), 1, kMaxImage * kMaxImage));
  if (stored == c.tokens_per_tile()) return {};
  return bad(root, "image_seq_length is " + std::to_string(stored) + ", but a tile of " +
                       std::to_string(c.vision.image_size) + " pixels gives " + std::to_string(c.tokens_per_tile()) +
                       " tokens");
}

}  // namespace

Result<ModelConfig> parse_config(const ConfigFiles& files, const std::string& directory) {
  TESSERA_CHECK(files.config != nullptr, "parse_config needs config.json");
  const std::string path = directory + "/config.json";
  if (!files.config->is_object()) return invalid_input("[" + path + "] is no JSON object");
  const JsonReader root(*files.config, path);
  TESSERA_ASSIGN_OR_RETURN(const std::string type, root.string("model_type"));
  ModelConfig config;
  if (type == "internvl_chat") {
    TESSERA_RETURN_IF_ERROR(refuse_unready(root));
    TESSERA_RETURN_IF_ERROR(parse_opengvlab(root, config));
  } else if (type == "internvl") {
    TESSERA_RETURN_IF_ERROR(refuse_unready(root));
    TESSERA_RETURN_IF_ERROR(parse_hf(root, files, directory, config));
  } else {
    return bad(root, "model_type is " + quoted(type) + "; supported are internvl_chat (OpenGVLab's InternVL format) and "
                     "internvl (the -hf format)");
  }
  TESSERA_RETURN_IF_ERROR(check_whole(root, config));
  if (config.format == CheckpointFormat::kHf) TESSERA_RETURN_IF_ERROR(check_tile_tokens(root, config));
  TESSERA_RETURN_IF_ERROR(read_generation(files.generation, directory + "/generation_config.json", config));
  return config;
}

}  // namespace tessera
