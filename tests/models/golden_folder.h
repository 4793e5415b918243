#pragma once

#include <filesystem>
#include <string>

#include "tests/models/hf_twin.h"

namespace tessera::testing {

inline bool holds_weights(const std::string& directory) {
  return std::filesystem::exists(directory + "/model.safetensors") ||
         std::filesystem::exists(directory + "/model.safetensors.index.json");
}

/// The directory to load a golden model from: the fixture's own; for a -hf folder whose weights this set of fixtures leaves
/// out, its files beside the weights of its OpenGVLab twin under -hf names; empty where the set has neither.
inline std::string golden_folder(const std::string& name) {
  namespace fs = std::filesystem;
  const std::string own = fixture_path("models/" + name);
  if (holds_weights(own)) return own;
  const size_t format = name.rfind("-hf");
  if (format == std::string::npos || !fs::exists(own)) return {};
  const std::string twin = fixture_path("models/" + name.substr(0, format) + "-opengvlab");
  if (!holds_weights(twin)) return {};
  const bool newer = name.rfind("qwen2", 0) != 0;  // qwen2-hf has the 4.52-era names
  const std::string directory = hf_twin(CheckpointFolder::read(twin), newer).write(DType::kBF16);
  for (const auto& file : fs::directory_iterator(own))
    fs::copy_file(file.path(), fs::path(directory) / file.path().filename(), fs::copy_options::overwrite_existing);
  return directory;
}

}  // namespace tessera::testing
