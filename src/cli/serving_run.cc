#include "cli/serving_run.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <numeric>
#include <thread>

namespace tessera::cli {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Counts what is on its way and gathers the figures of all requests.
class Gathering {
 public:
  explicit Gathering(const std::function<void(int64_t)>& ended) : ended_(ended) {}

  void begin() {
    std::lock_guard lock(mutex_);
    ++running_;
  }
  // Tells the waiter before it lets go of the mutex: at the last end the waiter goes on and this object is gone.
  void end(const std::function<void(ServingResult&)>& add) {
    std::lock_guard lock(mutex_);
    --running_;
    add(result_);
    if (ended_) ended_(result_.completed + result_.failed);
    changed_.notify_all();
  }
  void wait_below(int64_t limit) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return running_ < limit; });
  }
  ServingResult take() { return std::move(result_); }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void(int64_t)>& ended_;
  int64_t running_ = 0;
  ServingResult result_;
};

class Meter : public Listener {
 public:
  explicit Meter(Gathering* gathering) : gathering_(gathering) {}

  void on_prompt(const PromptInfo& info) override { prompt_ = info; }
  void on_delta(const Delta& delta) override {
    const double now = since(begin_);
    if (tokens_ == 0)
      first_ = now;
    else if (!delta.token_ids.empty())
      gaps_.push_back(now - last_);
    last_ = now;
    tokens_ += static_cast<int64_t>(delta.token_ids.size());
  }
  void on_finish(const Finish& finish) override {
    const double total = since(begin_);
    gathering_->end([&](ServingResult& result) {
      if (finish.reason == FinishReason::kError || finish.reason == FinishReason::kCancelled) {
        ++result.failed;
        if (result.first_error.empty()) result.first_error = finish.status.message();
        return;
      }
      ++result.completed;
      result.prompt_tokens += prompt_.prompt_tokens;
      result.image_tokens += prompt_.image_tokens;
      for (const ImageInfo& image : prompt_.images) result.tiles += image.tiles;
      result.cached_tokens += finish.cached_tokens;
      result.new_tokens += tokens_;
      result.first_token_s.push_back(first_);
      result.inter_token_s.insert(result.inter_token_s.end(), gaps_.begin(), gaps_.end());
      result.request_s.push_back(total);
    });
  }

 private:
  Gathering* gathering_;
  Clock::time_point begin_ = Clock::now();
  PromptInfo prompt_;
  double first_ = 0, last_ = 0;
  int64_t tokens_ = 0;
  std::vector<double> gaps_;
};

Json percentiles_json(const std::vector<double>& values) {
  const Percentiles p = percentiles(values);
  Json json;
  json.set("mean", p.mean);
  json.set("p50", p.p50);
  json.set("p90", p.p90);
  json.set("p99", p.p99);
  json.set("max", p.max);
  return json;
}

}  // namespace

Percentiles percentiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())))];
  };
  return {at(0.5), at(0.9), at(0.99), values.back(),
          std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size())};
}

ServingResult run_serving(const std::vector<Request>& load, const ServingPace& pace, const SendRequest& send,
                          const std::function<void(int64_t)>& ended) {
  Gathering gathering(ended);
  const auto times = arrival_times(static_cast<int64_t>(load.size()), pace.rate, pace.seed);
  const Clock::time_point begin = Clock::now();
  for (size_t i = 0; i < load.size(); ++i) {
    if (pace.rate > 0)
      std::this_thread::sleep_until(begin + std::chrono::duration_cast<Clock::duration>(
                                                std::chrono::duration<double>(times[i])));
    else
      gathering.wait_below(pace.concurrency);
    gathering.begin();
    auto meter = std::make_shared<Meter>(&gathering);
    if (Status status = send(load[i], meter); !status.ok())
      meter->on_finish({.index = 0, .reason = FinishReason::kError, .status = status});
  }
  gathering.wait_below(1);
  ServingResult result = gathering.take();
  result.seconds = since(begin);
  return result;
}

Json serving_json(const ServingResult& result) {
  Json json;
  json.set("completed", result.completed);
  json.set("failed", result.failed);
  json.set("seconds", result.seconds);
  json.set("requests_per_s", result.requests_per_s());
  json.set("tokens_per_s", result.tokens_per_s());
  json.set("prompt_tokens", result.prompt_tokens);
  json.set("image_tokens", result.image_tokens);
  json.set("cached_tokens", result.cached_tokens);
  json.set("new_tokens", result.new_tokens);
  json.set("tiles", result.tiles);
  json.set("first_token_s", percentiles_json(result.first_token_s));
  json.set("inter_token_s", percentiles_json(result.inter_token_s));
  json.set("request_s", percentiles_json(result.request_s));
  if (!result.first_error.empty()) json.set("first_error", result.first_error);
  return json;
}

std::string serving_table(const ServingResult& result) {
  char text[1024], tiles[48] = "";  // a server behind a URL does not tell its tiles
  if (result.tiles > 0 && result.seconds > 0)
    std::snprintf(tiles, sizeof tiles, ", %.1f tiles/s", static_cast<double>(result.tiles) / result.seconds);
  const Percentiles first = percentiles(result.first_token_s), gap = percentiles(result.inter_token_s);
  const Percentiles whole = percentiles(result.request_s);
  std::snprintf(text, sizeof text,
                "requests            %lld done, %lld failed in %.2f s\n"
                "throughput          %.2f requests/s, %.1f new tokens/s%s\n"
                "prompt tokens       %lld (%lld of pictures, %lld from the prefix cache)\n"
                "                         p50        p90        p99        max       mean   ms\n"
                "time to first token %9.1f  %9.1f  %9.1f  %9.1f  %9.1f\n"
                "between tokens      %9.2f  %9.2f  %9.2f  %9.2f  %9.2f\n"
                "whole request       %9.1f  %9.1f  %9.1f  %9.1f  %9.1f\n",
                static_cast<long long>(result.completed), static_cast<long long>(result.failed), result.seconds,
                result.requests_per_s(), result.tokens_per_s(),
                tiles,
                static_cast<long long>(result.prompt_tokens), static_cast<long long>(result.image_tokens),
                static_cast<long long>(result.cached_tokens), first.p50 * 1e3, first.p90 * 1e3, first.p99 * 1e3,
                first.max * 1e3, first.mean * 1e3, gap.p50 * 1e3, gap.p90 * 1e3, gap.p99 * 1e3, gap.max * 1e3, gap.mean * 1e3, whole.p50 * 1e3,
                whole.p90 * 1e3, whole.p99 * 1e3, whole.max * 1e3, whole.mean * 1e3);
  return text;
}

}  // namespace tessera::cli
