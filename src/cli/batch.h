#pragma once

#include <string>

#include "cli/engine_flags.h"

namespace tessera::cli {

/// `tessera run --input FILE.jsonl --output FILE.jsonl`.
struct BatchOptions {
  EngineOptions engine;
  SamplingFlags sampling;  ///< defaults for lines that do not say
  std::string input;       ///< a path, or - for standard input
  std::string output;      ///< a path, or - for standard output
};

/// Runs all requests of a JSONL file through one engine, many at once, and writes one result a line, in order. A bad
/// line gets an error object and the rest go on. An existing output file is continued: what is done stays, a torn last
/// line is cut, error lines are done again. Returns the exit code: 2 when any line failed.
int run_batch(const BatchOptions& options);

}  // namespace tessera::cli
