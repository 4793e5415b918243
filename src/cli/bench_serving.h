#pragma once

#include <span>
#include <string>

namespace tessera::cli {

/// `tessera bench MODEL --serving`: replays a request mix in process, or against a server with --url.
int bench_serving_command(std::span<const std::string> args);

}  // namespace tessera::cli
