#include "cli/bench_serving.h"

#include <cstdio>
#include <fstream>
#include <sstream>

#include "cli/arg_parser.h"
#include "cli/engine_flags.h"
#include "cli/progress.h"
#include "cli/serving_client.h"
#include "cli/serving_floor.h"
#include "cli/serving_run.h"
#include "cli/session.h"

namespace tessera::cli {
namespace {

struct ServingFlags {
  EngineFlags engine;
  ServingMix mix;
  int64_t seed = 1;
  int64_t concurrency = 64;
  double rate = 0;
  std::string sweep, url, api_key, plot;
  bool json = false;
  bool serving = true;  // what brought us here
};

void add_flags(ArgParser& parser, ServingFlags& flags) {
  parser.positional("MODEL", &flags.engine.options.model, "the model; with --url the name that the server serves");
  parser.group("Load");
  parser.flag("--serving", &flags.serving, "replay a request mix");
  parser.option("--requests", &flags.mix.requests, 1, 1000000, "requests in all");
  parser.option("--concurrency", &flags.concurrency, 1, 100000, "requests at once");
  parser.option("--rate", &flags.rate, 0.0, 1e6, "Poisson arrivals a second in place of --concurrency; 0: off");
  parser.option("--sweep", &flags.sweep, "several loads, such as 1,4,16,64: one run each (of --concurrency or --rate)");
  parser.choice("--pictures", &flags.mix.pictures, {"seven", "mixed", "none"},
                "seven: 7 tiles each; mixed: 1 to 13 tiles; none: text alone");
  parser.option("--text-tokens", &flags.mix.text_tokens, 1, 100000, "words of text in a request");
  parser.option("--new-tokens", &flags.mix.new_tokens, 1, 100000, "tokens to generate (end-of-answer is ignored)");
  parser.option("--shared-prefix", &flags.mix.shared_prefix, 0.0, 1.0, "share of requests with one common system text");
  parser.option("--load-seed", &flags.seed, 0, 1 << 30, "draws another load");
  parser.option("--url", &flags.url, "an OpenAI-compatible server, http://host:port");
  parser.option("--api-key", &flags.api_key, "key for --url");
  parser.option("--plot", &flags.plot, "write an SVG of latency against load");
  parser.flag("--json", &flags.json, "print one JSON object");
  flags.engine.add_to(parser);
}

Result<std::vector<double>> loads_of(const ServingFlags& flags) {
  if (flags.sweep.empty())
    return std::vector<double>{flags.rate > 0 ? flags.rate : static_cast<double>(flags.concurrency)};
  std::vector<double> loads;
  std::istringstream words(flags.sweep);
  for (std::string word; std::getline(words, word, ',');) {
    char* end = nullptr;
    const double load = std::strtod(word.c_str(), &end);
    if (word.empty() || *end != '\0' || !(load > 0 && load <= 1e6))
      return invalid_input("--sweep has \"" + word + "\"; expected numbers above 0, such as 1,4,16,64");
    loads.push_back(load);
  }
  return loads;
}

Json cache_json(const EngineStats& before, const EngineStats& after) {
  const auto share = [](uint64_t hits, uint64_t queries) {
    return queries ? static_cast<double>(hits) / static_cast<double>(queries) : 0.0;
  };
  Json json;
  json.set("prefix_hit_share", share(after.prefix_cache_hit_tokens - before.prefix_cache_hit_tokens,
                                     after.prefix_cache_queries_tokens - before.prefix_cache_queries_tokens));
  json.set("picture_hit_share", share(after.picture_cache_hits - before.picture_cache_hits,
                                      after.picture_cache_queries - before.picture_cache_queries));
  json.set("tiles_encoded", static_cast<int64_t>(after.tiles_encoded - before.tiles_encoded));
  json.set("vision_passes", static_cast<int64_t>(after.vision_passes - before.vision_passes));
  json.set("preemptions", static_cast<int64_t>(after.preemptions - before.preemptions));
  json.set("steps", static_cast<int64_t>(after.steps - before.steps));
  return json;
}

class Bench {
 public:
  /// `engine` null: --url, whose device is not ours to probe.
  Bench(const ServingFlags& flags, Engine* engine, ServingFloor floor) : flags_(flags), engine_(engine), floor_(std::move(floor)) {}

  Status run(const std::vector<double>& loads) {
    TESSERA_ASSIGN_OR_RETURN(std::vector<Request> load, make_load());
    const SendRequest send = sender();
    Json runs = Json::array();
    for (double value : loads) {
      // Each point starts with cold picture caches, or the second would only read the first one's.
      for (Request& request : load) request.cache_salt = "load " + Json(value).dump();
      const ServingPace pace = {.concurrency = flags_.rate > 0 ? 1 : static_cast<int64_t>(value),
                                .rate = flags_.rate > 0 ? value : 0,
                                .seed = flags_.mix.seed};
      const EngineStats before = engine_ ? engine_->stats() : EngineStats{};
      points_.push_back({value, run(load, pace, send)});
      Json json = serving_json(points_.back().result);
      json.set(flags_.rate > 0 ? "rate" : "concurrency", value);
      if (engine_) add_engine(before, engine_->stats(), points_.back().result, json);
      print(value, json);
      runs.push_back(std::move(json));
    }
    if (flags_.json) std::printf("%s\n", runs.dump().c_str());
    return plot();
  }

  bool failed() const {
    for (const LoadPoint& point : points_)
      if (point.result.failed > 0) return true;
    return false;
  }

 private:
  using Progress = std::function<void(int64_t)>;

  // Shows `of` as they are done; a long run that says nothing looks like one that hangs.
  static Progress shown(ProgressLine& line, const std::string& title, int64_t of) {
    return [&line, title, of](int64_t done) {
      line.update(title, static_cast<double>(done) / static_cast<double>(of),
                  std::to_string(done) + " of " + std::to_string(of));
    };
  }

  Result<std::vector<Request>> make_load() const {
    ProgressLine line(ProgressLine::Elsewhere::kLines);
    return make_serving_load(flags_.mix, shown(line, "making requests", flags_.mix.requests));
  }

  static ServingResult run(const std::vector<Request>& load, const ServingPace& pace, const SendRequest& send) {
    ProgressLine line(ProgressLine::Elsewhere::kLines);
    return run_serving(load, pace, send, shown(line, "requests", static_cast<int64_t>(load.size())));
  }

  void add_engine(const EngineStats& before, const EngineStats& after, const ServingResult& result, Json& json) const {
    const double floor = serving_floor_s(floor_, before, after, result);
    json.set("caches", cache_json(before, after));
    json.set("floor_s", floor);
    json.set("share_of_floor", result.seconds > 0 ? floor / result.seconds : 0.0);
  }

  SendRequest sender() const {
    if (!engine_) return make_http_sender(flags_.url, flags_.engine.options.model, flags_.api_key);
    return [engine = engine_](const Request& request, std::shared_ptr<Listener> listener) {
      return engine->submit(request, std::move(listener)).second;
    };
  }

  void print(double load, const Json& json) const {
    if (flags_.json) return;
    std::printf("%s %g\n%s", flags_.rate > 0 ? "arrivals a second:" : "requests at once:", load,
                serving_table(points_.back().result).c_str());
    if (const Json* caches = json.find("caches")) {
      const auto count = [&](const char* name) { return static_cast<long long>(caches->find(name)->as_int64()); };
      std::printf("cache hits          %.1f %% of prompt tokens, %.1f %% of pictures\n"
                  "engine              %lld steps, %lld vision passes of %lld tiles, %lld preemptions\n"
                  "share of floor      %.3f (%.2f s at the device's probed speed)\n",
                  100 * caches->find("prefix_hit_share")->as_double(), 100 * caches->find("picture_hit_share")->as_double(),
                  count("steps"), count("vision_passes"), count("tiles_encoded"), count("preemptions"),
                  json.find("share_of_floor")->as_double(), json.find("floor_s")->as_double());
    }
    if (!points_.back().result.first_error.empty())
      std::printf("first error         %s\n", points_.back().result.first_error.c_str());
  }

  Status plot() const {
    if (flags_.plot.empty()) return {};
    std::ofstream out(flags_.plot, std::ios::binary);
    out << latency_plot_svg(points_, flags_.rate > 0 ? "arrivals a second" : "requests at once");
    out.flush();
    return out ? Status() : invalid_input("cannot write " + flags_.plot);
  }

  const ServingFlags& flags_;
  Engine* engine_;
  ServingFloor floor_;
  std::vector<LoadPoint> points_;
};

}  // namespace

int bench_serving_command(std::span<const std::string> args) {
  ArgParser parser("tessera bench", "Replays a request mix and prints throughput, latencies and cache hits.");
  ServingFlags flags;
  add_flags(parser, flags);
  if (auto code = parser.parse(args)) return *code;
  if (Status status = flags.engine.finish(); !status.ok()) return fail("bench", status);
  flags.mix.seed = static_cast<uint64_t>(flags.seed);
  auto loads = loads_of(flags);
  if (!loads.ok()) return fail("bench", loads.status());
  Session session;
  ServingFloor floor;
  if (flags.url.empty()) {
    auto probed = probe_serving_floor(flags.engine.options);
    if (!probed.ok()) return fail("bench", probed.status());
    floor = std::move(*probed);
    auto opened = open_session(flags.engine.options);
    if (!opened.ok()) return fail("bench", opened.status());
    session = std::move(*opened);
  }
  Bench bench(flags, session.engine.get(), std::move(floor));
  if (Status status = bench.run(*loads); !status.ok()) return fail("bench", status);
  return bench.failed() ? 1 : 0;
}

}  // namespace tessera::cli
