#pragma once

#include <memory>
#include <string>

#include "cli/answer.h"
#include "cli/engine_flags.h"
#include "core/result.h"
#include "tessera/options.h"

namespace tessera::cli {

/// An opened engine and what loading it took.
struct Session {
  std::unique_ptr<Engine> engine;
  LoadReport report;
};

/// Opens the engine with a progress bar on a terminal.
Result<Session> open_session(EngineOptions options);

/// Reads a picture file for a request, bounded by the options' byte limit.
Result<ImageInput> read_image(const std::string& path, const EngineOptions& options);

/// Submits and waits, passing a first Ctrl-C on as a cancellation. The answer's failure is the Status.
Status run_to_end(Engine& engine, const Request& request, const std::shared_ptr<Answer>& answer);

/// The `memory` field of a run: planned and peak bytes of each device. Call when all work is over.
Json memory_json(const Session& session);

/// "12 tokens in 0.5 s (24.0 tokens/s)": one line about speed.
std::string speed_line(const Answer& answer, double load_s);

}  // namespace tessera::cli
