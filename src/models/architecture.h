#pragma once

#include <span>
#include <string_view>

#include "core/json.h"
#include "models/config.h"

namespace tessera {

class WeightLoader;
struct DecoderLayer;
struct DecoderStep;

/// The names of a language model's tensors outside its layers: embedding and norm behind the checkpoint's language
/// prefix, the head as the OpenGVLab format has it.
struct OuterNames {
  const char* embedding = "embed_tokens.weight";
  const char* norm = "norm.weight";
  const char* head = "language_model.lm_head.weight";
};

/// One language architecture: what its file in this folder defines. A plain table of functions, found by name.
struct LanguageArchitecture {
  const char* name = "";        ///< llm_config.architectures[0] of the OpenGVLab format: the program's name for it
  const char* model_type = "";  ///< text_config.model_type of the -hf format; empty: not in that format
  OuterNames outer;
  /// Reads llm_config / text_config into `config`.
  Status (*configure)(const JsonReader& text, LanguageConfig& config) = nullptr;
  /// Declares and loads the tensors of one layer; `layer.index` is set.
  void (*load_layer)(WeightLoader& load, DecoderLayer& layer) = nullptr;
  /// Runs one layer over a step: step.x += ...
  void (*forward_layer)(DecoderStep& step, const DecoderLayer& layer) = nullptr;
};

extern const LanguageArchitecture kQwen2;
extern const LanguageArchitecture kQwen3;
extern const LanguageArchitecture kQwen3Moe;
extern const LanguageArchitecture kInternLm2;
extern const LanguageArchitecture kLlama;
extern const LanguageArchitecture kPhi3;

std::span<const LanguageArchitecture* const> language_architectures();
/// By `architectures[0]`; nullptr when unknown.
const LanguageArchitecture* find_architecture(std::string_view name);
/// By `model_type`; nullptr when unknown.
const LanguageArchitecture* find_architecture_by_type(std::string_view model_type);
/// "Qwen2ForCausalLM, ..." for messages.
std::string architecture_names();

}  // namespace tessera
