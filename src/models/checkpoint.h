#pragma once

#include <memory>
#include <string>

#include "core/result.h"
#include "models/config.h"
#include "models/tensor_store.h"

namespace tessera {

/// Where a MODEL name leads.
struct ModelLocation {
  std::string directory;       ///< of the checkpoint; empty for a catalogue entry
  std::string catalogue_name;  ///< of a released model, in the catalogue's spelling; empty for a directory
};

struct LocateOptions {
  /// The bare name of a released model is enough (plan, doctor, bench). Files that are there win.
  bool allow_catalogue = false;
};

/// Finds a model, in this order: `demo`; a directory; `owner/name` in the local Hugging Face cache (HF_HUB_CACHE, else
/// HF_HOME/hub, else ~/.cache/huggingface/hub), at the snapshot that refs/main names; with allow_catalogue a released
/// model's name. Nothing is ever downloaded. Errors say where it was looked for and name the nearest release.
Result<ModelLocation> locate_model(const std::string& model, const LocateOptions& options = {});

/// A model before it is loaded: its configuration and where its numbers come from. Opening reads JSON files and tensor
/// headers, no weights. Immutable after open; const members may be called from several threads.
class Checkpoint {
 public:
  /// Locates and opens. A catalogue entry opens as random_checkpoint(entry, 0).
  static Result<Checkpoint> open(const std::string& model, const LocateOptions& options = {});
  /// Opens a directory in either public format. Errors name the file and what to do about it.
  static Result<Checkpoint> open_directory(const std::string& directory);

  Checkpoint(std::string name, std::string directory, ModelConfig config, std::shared_ptr<const TensorStore> tensors)
      : name_(std::move(name)),
        directory_(std::move(directory)),
        config_(std::move(config)),
        tensors_(std::move(tensors)) {}

  /// As the user gave it, for messages and `GET /v1/models`.
  const std::string& name() const { return name_; }
  /// Where the tokenizer's files lie; empty for a catalogue entry.
  const std::string& directory() const { return directory_; }
  const ModelConfig& config() const { return config_; }
  const TensorStore& tensors() const { return *tensors_; }

 private:
  std::string name_;
  std::string directory_;
  ModelConfig config_;
  std::shared_ptr<const TensorStore> tensors_;
};

/// A model of this shape with pseudo-random weights (see RandomStore), for benchmarks and plans without files.
Checkpoint random_checkpoint(const ModelConfig& config, uint64_t seed);

}  // namespace tessera
