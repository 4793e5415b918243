#pragma once

#include <string>

#include "cli/serving_run.h"

namespace tessera::cli {

/// Sends requests to an OpenAI-compatible server, `http://host:port`, as streaming chat completions with the pictures as
/// data URLs; one thread and one connection a request. Its listener gets a delta for each event that holds text or
/// tokens; where the server reports usage, the token counts are the server's.
SendRequest make_http_sender(const std::string& url, const std::string& model, const std::string& api_key);

}  // namespace tessera::cli
