#pragma once

#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <string>

#include "backends/registry.h"
#include "models/checkpoint.h"

namespace tessera {

struct OpenedModel {
  std::unique_ptr<Backend> backend;
  Checkpoint checkpoint;
};

/// A device, and a catalogue model's shape or a checkpoint; what does not open is said on stderr.
inline std::optional<OpenedModel> open_for_bench(const BackendOptions& options, const std::string& model) {
  auto backend = open_backend(options);
  if (!backend.ok()) return std::fprintf(stderr, "%s\n", backend.status().message().c_str()), std::nullopt;
  auto checkpoint = Checkpoint::open(model, {.allow_catalogue = true});
  if (!checkpoint.ok()) return std::fprintf(stderr, "%s\n", checkpoint.status().message().c_str()), std::nullopt;
  return OpenedModel{std::move(*backend), std::move(*checkpoint)};
}

/// NAME=VALUE, as `tessera bench --limit` takes it.
inline void impose(BackendOptions& options, const std::string& limit) {
  options.limits.emplace_back(limit.substr(0, limit.find('=')), std::stoll(limit.substr(limit.find('=') + 1)));
}

/// main of a bench: its exit code, 1 for an exception.
inline int bench_main(int (*run)(int, char**), int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}

}  // namespace tessera
