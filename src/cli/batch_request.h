#pragma once

#include <optional>
#include <string>

#include "cli/engine_flags.h"
#include "core/json.h"
#include "core/result.h"
#include "tessera/request.h"

namespace tessera::cli {

/// One line of a batch: its id, and the request or why there is none.
struct BatchLine {
  std::optional<Json> id;
  Result<Request> request = invalid_input("not read");
};

/// Reads a line: OpenAI's chat request with `id`, `max_dynamic_patch` and `min_dynamic_patch` beside its fields. A
/// picture is a data URL, a file:// URL or a path, absolute or relative to `directory` (the input file's). What the line
/// does not say comes from the command line's sampling options. Pictures' files are read here; call it late.
BatchLine read_batch_line(const std::string& line, const std::string& directory, const SamplingFlags& defaults,
                          const EngineOptions& options);

/// The `id` of a line without reading the rest; absent where there is none or the line is no JSON object.
std::optional<Json> batch_line_id(const std::string& line);

}  // namespace tessera::cli
