#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tessera/engine.h"

namespace tessera::server {

/// A Prometheus histogram: fixed upper bounds, lock-free observation.
class Histogram {
 public:
  explicit Histogram(std::vector<double> upper_bounds);
  void observe(double value);
  /// Appends the exposition of this histogram, type and help included.
  void render(std::string& out, const char* name, const char* help, const std::string& labels) const;

 private:
  std::vector<double> bounds_;
  std::unique_ptr<std::atomic<uint64_t>[]> counts_;  // one more than bounds_: +Inf
  std::atomic<double> sum_{0};
};

/// What the server counts itself. Thread-safe. Names follow vLLM's with the prefix `tessera:`, so that its
/// dashboards need only the prefix changed.
class Metrics {
 public:
  Metrics();

  Histogram time_to_first_token, inter_token_latency, request_latency, queue_time, preprocess_time,
      encode_time, prefill_time, decode_time, prompt_tokens, generation_tokens;
  std::atomic<uint64_t> images{0};
  std::atomic<uint64_t> tiles{0};
  std::atomic<uint64_t> disconnects{0};

  /// `path` is one of the known routes (or "other"), so that clients can't make series without end.
  void count_response(const std::string& path, int status);
  void count_finish(const char* reason);

  struct Gauges {
    bool ready = false;
    int64_t connections = 0;
    uint64_t connections_refused = 0;
  };
  /// The text format 0.0.4. `stats` may be null while the model loads.
  std::string render(const std::string& model_name, const EngineStats* stats, const Gauges& gauges) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, uint64_t> responses_;
  std::map<std::string, uint64_t> finishes_;
};

}  // namespace tessera::server
