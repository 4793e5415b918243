#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/arg_parser.h"
#include "cli/device_flags.h"
#include "core/result.h"
#include "tessera/options.h"

namespace tessera::cli {

/// The options shared by all subcommands that load a model, bound to an EngineOptions. Register them, parse, then call
/// finish() once to check what one option alone cannot say.
struct EngineFlags {
  EngineOptions options;
  DeviceFlags device;
  std::string exif_orientation = "ignore";
  std::optional<int64_t> session_len, kv_cache_tokens, gpu_memory_limit, max_patch, min_patch, vision_batch, prefill;
  std::optional<int64_t> embedding_cache, tile_cache, preparation;
  std::optional<double> decode_wait;
  int64_t tp = 1;
  bool no_prefix_cache = false;

  void add_to(ArgParser& parser);
  Status finish();
};

/// The sampling options of `run` and `chat`, bound to a Request's fields.
struct SamplingFlags {
  std::optional<double> temperature, top_p, min_p, repetition, presence, frequency;
  std::optional<int64_t> top_k, seed, max_new_tokens, logprobs;
  std::vector<std::string> stop;
  std::string markup;
  bool ignore_eos = false;
  std::optional<std::string> system;

  void add_to(ArgParser& parser);
  /// `--logprobs`, where the answer has a place for them.
  void add_logprobs_to(ArgParser& parser);
  /// Writes the options into `request`; refuses unknown markup names.
  Status apply(Request& request) const;
};

/// The exit code that a failure asks for: 2 bad input, 3 does not fit, 1 internal.
int exit_code(const Status& status);

/// Prints "tessera run: message" as one line on stderr and returns the exit code.
int fail(const std::string& command, const Status& status);

}  // namespace tessera::cli
