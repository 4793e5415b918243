#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/serving_load.h"
#include "core/json.h"
#include "tessera/engine.h"

namespace tessera::cli {

/// Sends one request somewhere; the listener hears what becomes of it, on any thread.
using SendRequest = std::function<Status(const Request&, std::shared_ptr<Listener>)>;

/// How a load is offered: a fixed number at once, or a rate of arrivals.
struct ServingPace {
  int64_t concurrency = 64;  ///< used when rate is 0
  double rate = 0;           ///< requests a second, Poisson
  uint64_t seed = 1;
};

struct Percentiles {
  double p50 = 0, p90 = 0, p99 = 0, max = 0, mean = 0;
};
Percentiles percentiles(std::vector<double> values);

/// What came of one run.
struct ServingResult {
  int64_t completed = 0, failed = 0;
  double seconds = 0;
  int64_t prompt_tokens = 0, image_tokens = 0, new_tokens = 0, tiles = 0, cached_tokens = 0;
  std::vector<double> first_token_s;   ///< from the request's turn to its first text or token
  std::vector<double> inter_token_s;   ///< between tokens of one answer
  std::vector<double> request_s;
  std::string first_error;
  double requests_per_s() const { return seconds > 0 ? static_cast<double>(completed) / seconds : 0; }
  double tokens_per_s() const { return seconds > 0 ? static_cast<double>(new_tokens) / seconds : 0; }
};

/// Offers the load and waits for its end. `ended` hears how many requests have ended, one call at a time, on any thread.
ServingResult run_serving(const std::vector<Request>& load, const ServingPace& pace, const SendRequest& send,
                          const std::function<void(int64_t)>& ended = {});

Json serving_json(const ServingResult& result);
/// The same as lines of text.
std::string serving_table(const ServingResult& result);

/// One point of a latency-against-load plot.
struct LoadPoint {
  double load = 0;  ///< requests at once, or requests a second
  ServingResult result;
};
/// An SVG: time to first token and time between tokens (p50, p99) against load.
std::string latency_plot_svg(const std::vector<LoadPoint>& points, const std::string& load_label);

}  // namespace tessera::cli
