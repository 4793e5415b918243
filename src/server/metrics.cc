#include "server/metrics.h"

#include <algorithm>

#include "server/json_text.h"
#include "tessera/version.h"

namespace tessera::server {
namespace {

// The bounds of vLLM's histograms of the same names.
const std::vector<double> kFirstTokenSeconds = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06,  0.08,
                                                0.1,   0.25,  0.5,  0.75, 1.0,  2.5,   5.0,
                                                7.5,   10.0,  20.0, 40.0, 80.0, 160.0, 640.0};
const std::vector<double> kTokenSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
                                           0.3,   0.4,    0.5,   0.75, 1.0,   2.5,  5.0,   7.5, 10.0, 20.0};
const std::vector<double> kRequestSeconds = {0.01, 0.05, 0.1,   0.3,   0.5,   0.8,  1.0,  1.5,
                                             2.0,  2.5,  5.0,   10.0,  15.0,  20.0, 30.0, 40.0,
                                             50.0, 60.0, 120.0, 240.0, 480.0, 960.0};
const std::vector<double> kTokens = {1,   2,    5,    10,   20,    50,    100,  200,
                                     500, 1000, 2000, 5000, 10000, 20000, 50000};

// One family of the exposition: its head once, then its samples.
class Family {
 public:
  Family(std::string& out, const char* name, const char* type, const char* help) : out_(out), name_(name) {
    out_ +=
        std::string("# HELP tessera:") + name + " " + help + "\n# TYPE tessera:" + name + " " + type + "\n";
  }
  void sample(const std::string& labels, double value) {
    out_ += std::string("tessera:") + name_ + "{" + labels + "} ";
    append_json_number(out_, value);
    out_ += '\n';
  }

 private:
  std::string& out_;
  const char* name_;
};

std::string label(const char* name, const std::string& value) {
  std::string text = std::string(name) + "=\"";
  for (char c : value) {
    if (c == '\\' || c == '"') text += '\\';
    text += c == '\n' ? ' ' : c;
  }
  return text + "\"";
}

struct Scalar {
  const char* name;
  const char* type;
  const char* help;
  double value;
};

double ratio(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

std::vector<Scalar> engine_scalars(const EngineStats& s) {
  auto d = [](auto value) { return static_cast<double>(value); };
  return {
      {"num_requests_running", "gauge", "Requests in the running batch.", d(s.running)},
      {"num_requests_waiting", "gauge", "Requests waiting for a place in the batch.", d(s.waiting)},
      {"num_requests_preparing", "gauge", "Requests whose pictures and prompt are being prepared.",
       d(s.preparing)},
      {"kv_cache_usage_perc", "gauge", "Share of KV blocks held by sequences, 0..1.",
       ratio(d(s.kv_blocks_used), d(s.kv_blocks_total))},
      {"kv_blocks", "gauge", "KV blocks in all.", d(s.kv_blocks_total)},
      {"kv_blocks_used", "gauge", "KV blocks held by sequences.", d(s.kv_blocks_used)},
      {"kv_blocks_cached", "gauge", "Free KV blocks that hold a reusable prefix.", d(s.kv_blocks_cached)},
      {"prompt_tokens_total", "counter", "Prompt tokens processed.", d(s.prompt_tokens)},
      {"generation_tokens_total", "counter", "Tokens generated.", d(s.generated_tokens)},
      {"num_preemptions_total", "counter", "Sequences put back for want of KV blocks.", d(s.preemptions)},
      {"engine_steps_total", "counter", "Steps of the engine.", d(s.steps)},
      {"engine_requests_finished_total", "counter", "Requests that the engine finished.",
       d(s.requests_finished)},
      {"engine_requests_failed_total", "counter", "Requests that the engine failed.", d(s.requests_failed)},
      {"prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.",
       d(s.prefix_cache_queries_tokens)},
      {"prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.",
       d(s.prefix_cache_hit_tokens)},
      {"mm_cache_queries_total", "counter", "Pictures looked up in the embedding cache.",
       d(s.picture_cache_queries)},
      {"mm_cache_hits_total", "counter", "Pictures found in the embedding cache.", d(s.picture_cache_hits)},
      {"tile_cache_hits_total", "counter", "Pictures whose decoding and resizing was avoided.",
       d(s.tile_cache_hits)},
      {"tiles_encoded_total", "counter", "Tiles that went through the vision model.", d(s.tiles_encoded)},
      {"vision_passes_total", "counter", "Passes of the vision model.", d(s.vision_passes)},
      {"preprocess_seconds_total", "counter", "Busy seconds decoding and resizing pictures.", s.preprocess_s},
      {"encode_seconds_total", "counter", "Busy seconds of the vision model.", s.encode_s},
      {"prefill_seconds_total", "counter", "Busy seconds of prefill.", s.prefill_s},
      {"decode_seconds_total", "counter", "Busy seconds of decoding.", s.decode_s},
  };
}

void render_memory(std::string& out, const std::string& model, const EngineStats& stats) {
  const std::pair<const char*, const std::vector<std::pair<std::string, int64_t>>*> kinds[] = {
      {"memory_planned_bytes", &stats.memory_planned}, {"memory_used_bytes", &stats.memory_used}};
  for (const auto& [name, lines] : kinds) {
    Family family(out, name, "gauge", "Bytes by line of the memory plan.");
    for (const auto& [line, bytes] : *lines)
      family.sample(model + "," + label("line", line), static_cast<double>(bytes));
  }
}

}  // namespace

Histogram::Histogram(std::vector<double> upper_bounds)
    : bounds_(std::move(upper_bounds)), counts_(new std::atomic<uint64_t>[bounds_.size() + 1]()) {}

void Histogram::observe(double value) {
  const auto slot = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<size_t>(slot)].fetch_add(1, std::memory_order_relaxed);
  double sum = sum_.load(std::memory_order_relaxed);
  while (!sum_.compare_exchange_weak(sum, sum + value, std::memory_order_relaxed)) {
  }
}

void Histogram::render(std::string& out, const char* name, const char* help,
                       const std::string& labels) const {
  const std::string full = std::string("tessera:") + name;
  out += "# HELP " + full + " " + help + "\n# TYPE " + full + " histogram\n";
  uint64_t below = 0;
  for (size_t i = 0; i <= bounds_.size(); ++i) {
    below += counts_[i].load(std::memory_order_relaxed);
    out += full + "_bucket{" + labels + ",le=\"";
    if (i < bounds_.size())
      append_json_number(out, bounds_[i]);
    else
      out += "+Inf";
    out += "\"} " + std::to_string(below) + "\n";
  }
  out += full + "_sum{" + labels + "} ";
  append_json_number(out, sum_.load(std::memory_order_relaxed));
  out += "\n" + full + "_count{" + labels + "} " + std::to_string(below) + "\n";
}

Metrics::Metrics()
    : time_to_first_token(kFirstTokenSeconds),
      inter_token_latency(kTokenSeconds),
      request_latency(kRequestSeconds),
      queue_time(kRequestSeconds),
      preprocess_time(kRequestSeconds),
      encode_time(kRequestSeconds),
      prefill_time(kRequestSeconds),
      decode_time(kRequestSeconds),
      prompt_tokens(kTokens),
      generation_tokens(kTokens) {}

void Metrics::count_response(const std::string& path, int status) {
  std::lock_guard lock(mutex_);
  ++responses_[{path, status}];
}

void Metrics::count_finish(const char* reason) {
  std::lock_guard lock(mutex_);
  ++finishes_[reason];
}

std::string Metrics::render(const std::string& model_name, const EngineStats* stats,
                            const Gauges& gauges) const {
  std::string out;
  out.reserve(32 << 10);
  const std::string model = label("model_name", model_name);
  Family(out, "build_info", "gauge", "1, with the version as a label.").sample(label("version", kVersion), 1);
  Family(out, "ready", "gauge", "1 when the model answers.").sample(model, gauges.ready);
  Family(out, "http_connections", "gauge", "Open connections.")
      .sample(model, static_cast<double>(gauges.connections));
  Family(out, "http_connections_refused_total", "counter", "Connections above the bound.")
      .sample(model, static_cast<double>(gauges.connections_refused));
  Family(out, "client_disconnects_total", "counter",
         "Requests whose client went before the answer was complete.")
      .sample(model, static_cast<double>(disconnects));
  Family(out, "images_total", "counter", "Pictures of prompts that became ready.")
      .sample(model, static_cast<double>(images));
  Family(out, "image_tiles_total", "counter", "Tiles of prompts that became ready.")
      .sample(model, static_cast<double>(tiles));
  {
    std::lock_guard lock(mutex_);
    Family http(out, "http_requests_total", "counter", "Answered HTTP requests by path and status.");
    for (const auto& [key, count] : responses_)
      http.sample(label("path", key.first) + "," + label("status", std::to_string(key.second)),
                  static_cast<double>(count));
    Family finished(out, "request_success_total", "counter", "Finished answers by reason.");
    for (const auto& [reason, count] : finishes_)
      finished.sample(model + "," + label("finished_reason", reason), static_cast<double>(count));
  }
  if (stats) {
    for (const Scalar& scalar : engine_scalars(*stats))
      Family(out, scalar.name, scalar.type, scalar.help).sample(model, scalar.value);
    render_memory(out, model, *stats);
  }
  time_to_first_token.render(out, "time_to_first_token_seconds",
                             "From a request's arrival to its first token.", model);
  inter_token_latency.render(out, "inter_token_latency_seconds", "Between two tokens of one answer.", model);
  request_latency.render(out, "e2e_request_latency_seconds", "From a request's arrival to its last token.",
                         model);
  queue_time.render(out, "request_queue_time_seconds", "Waiting for a place in the batch.", model);
  preprocess_time.render(out, "request_preprocess_time_seconds",
                         "Decoding and resizing pictures, tokenizing.", model);
  encode_time.render(out, "request_encode_time_seconds", "In the vision model.", model);
  prefill_time.render(out, "request_prefill_time_seconds", "In prefill.", model);
  decode_time.render(out, "request_decode_time_seconds", "In decoding.", model);
  prompt_tokens.render(out, "request_prompt_tokens", "Prompt tokens of a request.", model);
  generation_tokens.render(out, "request_generation_tokens", "New tokens of a request.", model);
  return out;
}

}  // namespace tessera::server
