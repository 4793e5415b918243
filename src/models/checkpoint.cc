#include "models/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>

#include "core/file.h"
#include "models/architecture.h"
#include "models/catalogue.h"
#include "models/tensor_names.h"

namespace tessera {
namespace fs = std::filesystem;
namespace {

// A configuration of the largest release has 6 KB; the JSON tree takes some dozen times its text.
constexpr JsonLimits kConfigLimits{.max_depth = 32, .max_bytes = size_t{4} << 20};

bool exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

Result<std::optional<Json>> read_optional(const std::string& path) {
  if (!exists(path)) return std::optional<Json>();
  TESSERA_ASSIGN_OR_RETURN(Json json, Json::parse_file(path, kConfigLimits));
  return std::optional<Json>(std::move(json));
}

Status check_directory(const std::string& directory) {
  if (::faccessat(AT_FDCWD, directory.c_str(), R_OK | X_OK, AT_EACCESS) != 0)
    return invalid_input("cannot open the checkpoint directory " + directory + ": " + std::strerror(errno));
  if (exists(directory + "/config.json")) return {};
  if (exists(directory + "/adapter_config.json"))
    return invalid_input(directory + " holds a LoRA adapter (adapter_config.json), not a model; merge it into its base "
                         "model and load the result");
  return invalid_input(directory + " has no config.json; give the directory of a checkpoint as downloaded");
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

// Tensors whose mere presence says that the numbers are not plain weights.
Status refuse_tensors(const TensorStore& tensors, const std::string& directory) {
  for (const std::string& name : tensors.names()) {
    if (contains(name, "lora_A") || contains(name, "lora_B") || contains(name, ".base_layer."))
      return invalid_input(directory + ": tensor " + name +
                           " belongs to a LoRA that is not merged; merge it first (tools/merge_lora.py of the InternVL "
                           "repository) and load the result");
    if (contains(name, ".qweight") || contains(name, ".qzeros") || contains(name, ".weight_scale"))
      return invalid_input(directory + ": tensor " + name +
                           " is quantized, which is not supported; take the release without it (the name without -AWQ)");
    if (name.rfind("mlp2.", 0) == 0 || name.rfind("gating.", 0) == 0 || name.rfind("pooling_before_gating.", 0) == 0)
      return invalid_input(directory + ": tensor " + name + " belongs to InternVL3.5-Flash's visual router, which is not "
                           "supported; take the release without -Flash");
  }
  return {};
}

// An lm_head tensor wins whatever the flags say; without one the flags must allow the embedding to be the head.
Status settle_head(const TensorStore& tensors, const std::string& directory, ModelConfig& config) {
  auto found = find_tensor_names(tensors, config);
  if (!found.ok()) return found.status().with_context(directory);
  const TensorNames& names = *found;
  if (names.head.empty() && !config.language.tied)
    return invalid_input(directory + ": the head's tensor (language_model.lm_head.weight or lm_head.weight) is absent, "
                         "and config.json does not say tie_word_embeddings; download the weights again");
  config.language.tied = names.head.empty();
  return {};
}

}  // namespace

Result<Checkpoint> Checkpoint::open_directory(const std::string& directory) {
  TESSERA_RETURN_IF_ERROR(check_directory(directory));
  TESSERA_ASSIGN_OR_RETURN(const Json config_json, Json::parse_file(directory + "/config.json", kConfigLimits));
  TESSERA_ASSIGN_OR_RETURN(const auto generation, read_optional(directory + "/generation_config.json"));
  TESSERA_ASSIGN_OR_RETURN(const auto preprocessor, read_optional(directory + "/preprocessor_config.json"));
  TESSERA_ASSIGN_OR_RETURN(const auto processor, read_optional(directory + "/processor_config.json"));
  TESSERA_ASSIGN_OR_RETURN(ModelConfig config, parse_config({.config = &config_json,
                                                             .generation = generation ? &*generation : nullptr,
                                                             .preprocessor = preprocessor ? &*preprocessor : nullptr,
                                                             .processor = processor ? &*processor : nullptr},
                                                            directory));
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsStore> tensors, SafetensorsStore::open(directory));
  TESSERA_RETURN_IF_ERROR(refuse_tensors(*tensors, directory));
  TESSERA_RETURN_IF_ERROR(settle_head(*tensors, directory, config));
  return Checkpoint(directory, directory, std::move(config), std::move(tensors));
}

Result<Checkpoint> Checkpoint::open(const std::string& model, const LocateOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(const ModelLocation location, locate_model(model, options));
  if (!location.catalogue_name.empty()) {
    TESSERA_ASSIGN_OR_RETURN(const ModelConfig config, release_config(location.catalogue_name));
    Checkpoint checkpoint = random_checkpoint(config, 0);
    checkpoint.name_ = location.catalogue_name;
    return checkpoint;
  }
  TESSERA_ASSIGN_OR_RETURN(Checkpoint checkpoint, open_directory(location.directory));
  checkpoint.name_ = model;
  return checkpoint;
}

Checkpoint random_checkpoint(const ModelConfig& config, uint64_t seed) {
  const LanguageArchitecture* architecture = find_architecture(config.language.architecture);
  TESSERA_CHECK(architecture != nullptr, "architecture " + config.language.architecture);
  return Checkpoint("random", "", config,
                    std::make_shared<RandomStore>(seed, config.language.tied ? "" : architecture->outer.head));
}

}  // namespace tessera
