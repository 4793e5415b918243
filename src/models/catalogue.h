#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/result.h"
#include "models/config.h"

namespace tessera {

/// A released InternVL model: what its checkpoint's shape is, without its files.
struct Release {
  std::string_view name;         ///< as published, without the owner
  std::string_view vision;       ///< name of the tower's row
  std::string_view language;     ///< name of the language model's row
  std::string_view template_name;
  double total_billions = 0;     ///< published number of parameters, 1e9
  std::string_view unsupported;  ///< why the program cannot run it; empty for all others
};

/// All releases, oldest first.
std::span<const Release> releases();

/// By name: case does not matter; a leading "OpenGVLab/" and endings such as -hf, -MPO, -Instruct, -Pretrained, which
/// share the shape, are accepted. nullptr when unknown.
const Release* find_release(std::string_view name);

/// The known name most like this one, or empty when none is near.
std::string nearest_release(std::string_view name);

/// The configuration of a release. Errors: unknown (with the nearest name), or not supported (with the reason).
Result<ModelConfig> release_config(std::string_view name);

/// Number of stored parameters of a model of this shape.
int64_t parameter_count(const ModelConfig& config);

}  // namespace tessera
