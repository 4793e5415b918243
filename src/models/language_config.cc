#include "models/language_config.h"

#include <cmath>

namespace tessera {
namespace {

// Bounds that keep every product of sizes inside int64_t and far above any release (8192 wide, 94 layers, 201088 ids).
constexpr int64_t kMaxHidden = 1 << 16;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxFfn = 1 << 20;
constexpr int64_t kMaxVocab = 1 << 22;
constexpr int64_t kMaxPosition = int64_t{1} << 24;

Status inconsistent(const JsonReader& text, const std::string& what) {
  return invalid_input("[" + text.path() + "] " + what);
}

Status check_heads(const JsonReader& text, const LanguageConfig& c) {
  if (!text.find("head_dim") && c.hidden % c.heads != 0)
    return inconsistent(text, "hidden_size " + std::to_string(c.hidden) + " is no multiple of num_attention_heads " +
                                  std::to_string(c.heads));
  if (c.heads % c.kv_heads != 0)
    return inconsistent(text, "num_attention_heads " + std::to_string(c.heads) +
                                  " is no multiple of num_key_value_heads " + std::to_string(c.kv_heads));
  if (c.head_dim % 2 != 0)
    return inconsistent(text, "head_dim " + std::to_string(c.head_dim) + " is odd; rotary embedding needs pairs");
  return {};
}

Result<std::vector<float>> read_factors(const JsonReader& scaling, std::string_view key, size_t count) {
  const Json* list = scaling.find(key);
  if (!list || !list->is_array() || list->as_array().size() != count)
    return invalid_input("[" + scaling.path() + "] " + std::string(key) + " is not a list of " +
                         std::to_string(count) + " numbers (head_dim / 2)");
  std::vector<float> factors;
  for (const Json& item : list->as_array()) {
    if (!item.is_number() || !(item.as_double() > 0) || item.as_double() > 1e6)
      return invalid_input("[" + scaling.path() + "] " + std::string(key) + " holds " + item.dump().substr(0, 40) +
                           "; expected numbers in (0, 1e6]");
    factors.push_back(static_cast<float>(item.as_double()));
  }
  return factors;
}

// "su" of Phi-3, also called longrope: per-dimension factors, and cos and sin scaled at every length.
Status read_long_rope(const JsonReader& text, const JsonReader& scaling, LanguageConfig& config) {
  RopeParams& rope = config.rope;
  rope.kind = RopeKind::kLongRope;
  const JsonReader& owner = scaling.find("original_max_position_embeddings") ? scaling : text;
  TESSERA_ASSIGN_OR_RETURN(rope.original_max_position,
                           owner.integer("original_max_position_embeddings", 2, kMaxPosition));
  const auto pairs = static_cast<size_t>(config.head_dim / 2);
  TESSERA_ASSIGN_OR_RETURN(rope.short_factors, read_factors(scaling, "short_factor", pairs));
  TESSERA_ASSIGN_OR_RETURN(rope.long_factors, read_factors(scaling, "long_factor", pairs));
  const double ratio = static_cast<double>(config.max_position) / static_cast<double>(rope.original_max_position);
  const double scale =
      ratio <= 1 ? 1 : std::sqrt(1 + std::log(ratio) / std::log(static_cast<double>(rope.original_max_position)));
  TESSERA_ASSIGN_OR_RETURN(const double given, scaling.number_or("attention_factor", scale, 1e-3, 1e3));
  rope.attention_scale = static_cast<float>(given);
  return {};
}

Status read_scaling(const JsonReader& text, const JsonReader& scaling, LanguageConfig& config) {
  const std::string_view key = scaling.find("rope_type") ? "rope_type" : "type";
  TESSERA_ASSIGN_OR_RETURN(const std::string type, scaling.string_or(key, "default"));
  if (type == "default") return {};
  if (type == "su" || type == "longrope") return read_long_rope(text, scaling, config);
  TESSERA_ASSIGN_OR_RETURN(config.rope.factor, scaling.number_or("factor", 1, 1, 1e6));
  if (type == "linear" && config.rope.factor == 1) return {};
  if (type == "dynamic") {
    config.rope.kind = RopeKind::kDynamicNtk;
    return {};
  }
  return invalid_input("[" + scaling.path() + "] " + std::string(key) + " is " + Json(type).dump().substr(0, 60) +
                       "; supported are default, dynamic, su and longrope");
}

}  // namespace

Status read_rope(const JsonReader& text, LanguageConfig& config) {
  RopeParams& rope = config.rope;
  rope.head_dim = static_cast<int>(config.head_dim);
  rope.max_position = config.max_position;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json* value = text.find(key);
    if (!value) continue;
    if (!value->is_object()) return inconsistent(text, std::string(key) + " is no object");
    const JsonReader scaling(*value, text.path() + "." + key);
    const JsonReader& owner = scaling.find("rope_theta") ? scaling : text;
    TESSERA_ASSIGN_OR_RETURN(rope.base, owner.number_or("rope_theta", 10000, 1, 1e12));
    TESSERA_ASSIGN_OR_RETURN(const double partial, scaling.number_or("partial_rotary_factor", 1, 0, 1));
    if (partial != 1) return inconsistent(text, "partial_rotary_factor is not 1, which is not supported");
    return read_scaling(text, scaling, config);
  }
  TESSERA_ASSIGN_OR_RETURN(rope.base, text.number_or("rope_theta", 10000, 1, 1e12));
  return {};
}

Status refuse_flag(const JsonReader& text, std::string_view key) {
  TESSERA_ASSIGN_OR_RETURN(const bool set, text.boolean_or(key, false));
  if (!set) return {};
  return invalid_input("[" + text.path() + "] " + std::string(key) +
                       " is true, which is not supported; no release of InternVL sets it");
}

Status read_decoder_config(const JsonReader& text, LanguageConfig& c) {
  TESSERA_ASSIGN_OR_RETURN(c.hidden, text.integer("hidden_size", 1, kMaxHidden));
  TESSERA_ASSIGN_OR_RETURN(c.layers, text.integer("num_hidden_layers", 1, kMaxLayers));
  TESSERA_ASSIGN_OR_RETURN(c.heads, text.integer("num_attention_heads", 1, kMaxHeads));
  TESSERA_ASSIGN_OR_RETURN(c.kv_heads, text.integer_or("num_key_value_heads", c.heads, 1, kMaxHeads));
  TESSERA_ASSIGN_OR_RETURN(c.head_dim, text.integer_or("head_dim", std::max<int64_t>(c.hidden / c.heads, 1), 1,
                                                       kMaxHeadDim));
  TESSERA_ASSIGN_OR_RETURN(c.ffn, text.integer("intermediate_size", 1, kMaxFfn));
  TESSERA_ASSIGN_OR_RETURN(c.vocab, text.integer("vocab_size", 1, kMaxVocab));
  TESSERA_ASSIGN_OR_RETURN(c.max_position, text.integer("max_position_embeddings", 1, kMaxPosition));
  TESSERA_ASSIGN_OR_RETURN(const double eps, text.number_or("rms_norm_eps", 1e-6, 1e-12, 1));
  c.norm_eps = static_cast<float>(eps);
  TESSERA_ASSIGN_OR_RETURN(c.tied, text.boolean_or("tie_word_embeddings", false));
  TESSERA_ASSIGN_OR_RETURN(const std::string act, text.string_or("hidden_act", "silu"));
  if (act != "silu") return inconsistent(text, "hidden_act is " + Json(act).dump().substr(0, 60) + "; expected \"silu\"");
  TESSERA_RETURN_IF_ERROR(check_heads(text, c));
  TESSERA_RETURN_IF_ERROR(refuse_flag(text, "use_sliding_window"));
  return read_rope(text, c);
}

}  // namespace tessera
