#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "ops/backend.h"

namespace tessera {

/// Of one repetition, wall clock around a synchronised call.
struct Timing {
  double median = 0, least = 0, most = 0;  ///< milliseconds
};

/// With a key `body` runs as a captured graph.
inline Timing time_of(Backend& backend, uint64_t key, int repetitions, const std::function<void()>& body) {
  auto run = [&] { key ? backend.run_captured(key, body) : body(); };
  for (int i = 0; i < 3; ++i) run();
  backend.synchronize();
  std::vector<double> times;
  for (int i = 0; i < repetitions; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run();
    backend.synchronize();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() * 1e3);
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back()};
}

}  // namespace tessera
