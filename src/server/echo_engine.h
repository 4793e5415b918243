#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/result.h"
#include "tessera/engine.h"

namespace tessera::server {

/// How the echo engine behaves; written as `mock:echo?step_us=1000&fail_after=5`.
struct EchoOptions {
  int64_t session_len = 8192;
  int64_t max_queue = 1024;  ///< requests waiting beyond max_running
  int64_t max_running = 512;
  int64_t step_us = 1000;   ///< pause between two steps; each running answer gets one token a step
  int64_t prompt_us = 0;    ///< time that a prompt takes before its first token
  int64_t fail_after = -1;  ///< tokens after which every request fails with kInternal; -1: never
  int64_t load_ms = 0;      ///< time that loading takes
  int64_t lost_after = -1;  ///< requests after which the engine fails as one does whose device is lost; -1: never
  std::function<void(const Status&)> on_lost;  ///< see EngineOptions
};

/// Options from the text after "mock:echo", "" or "?name=value&...".
Result<EchoOptions> parse_echo_options(const std::string& text);

/// An engine without a model, for tests of the server and of clients: it answers with the text of the last
/// user message (or the prompt), one character a token, once, or (ignore_eos) over and over until
/// max_new_tokens. A token's id is the character's code point. It honours max_new_tokens, n, stop,
/// ignore_eos, logprobs (made-up numbers), deadlines and cancel(); a picture must begin like a PNG, JPEG,
/// GIF, BMP or WebP and counts 256 tokens; sampling options have nothing to act on. response_format
/// json_object answers with {"echo": TEXT}; json_schema is refused.
std::unique_ptr<Engine> make_echo_engine(const EchoOptions& options);

}  // namespace tessera::server
