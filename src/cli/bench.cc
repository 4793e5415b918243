#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <sstream>

#include "backends/registry.h"
#include "cli/arg_parser.h"
#include "cli/bench_model.h"
#include "cli/bench_serving.h"
#include "cli/bench_work.h"
#include "cli/commands.h"
#include "cli/device_flags.h"
#include "cli/engine_flags.h"
#include "core/json.h"
#include "vision/tile.h"

namespace tessera::cli {
namespace {

constexpr const char* kRowNames[] = {"vit_1_tile",   "vit_7_tiles",          "vit_13_tiles",   "prefill_512",
                                     "prefill_3392", "first_token_13_tiles", "decode_batch_1", "decode_batch_64",
                                     "decode_batch_256", "preprocess_12mpx"};
constexpr const char* kFooter =
    "A row's floor is its arithmetic over the matrix peak, or its bytes over the read bandwidth, whichever is more; both are\n"
    "probed in the same run. Rows: vit_1_tile, vit_7_tiles, vit_13_tiles, prefill_512, prefill_3392, first_token_13_tiles,\n"
    "decode_batch_1 (context 512), decode_batch_64, decode_batch_256 (context 1024), preprocess_12mpx; all in ms. A decode row is\n"
    "the time between two tokens of a sequence, as the host reads them.\n"
    "Weights are random where MODEL is a released model's name.\n"
    "`tessera bench MODEL --serving` replays a request mix; see `tessera bench --serving --help`.";

struct BenchOptions {
  std::string model, shape, only;
  DeviceFlags device;
  int64_t repeat = 5;
  bool json = false, serving = false;
};

struct Row {
  std::string name;
  double median = 0, minimum = 0, maximum = 0, floor = 0;  ///< ms; floor 0: none
  double share() const { return floor > 0 ? floor / median : 0; }
};

Result<std::vector<std::string>> chosen_rows(const std::string& only) {
  std::vector<std::string> names(std::begin(kRowNames), std::end(kRowNames));
  if (only.empty()) return names;
  std::vector<std::string> chosen;
  std::istringstream words(only);
  for (std::string word; std::getline(words, word, ',');) {
    if (std::find(names.begin(), names.end(), word) == names.end()) {
      const std::string near = nearest_word(word, names);
      return invalid_input("--only: unknown row \"" + word + "\"; " +
                           (near.empty() ? "see tessera bench --help" : "did you mean " + near + "?"));
    }
    chosen.push_back(word);
  }
  return chosen;
}

/// The rows as work on a loaded model.
struct Workload {
  int64_t tiles = 0, prefill = 0, image_rows = 0, batch = 0, context = 0;
};

Workload workload_of(const std::string& name, const ModelConfig& config) {
  if (name == "vit_1_tile") return {.tiles = 1};
  if (name == "vit_7_tiles") return {.tiles = 7};
  if (name == "vit_13_tiles") return {.tiles = 13};
  if (name == "prefill_512") return {.prefill = 512};
  if (name == "prefill_3392") return {.prefill = 3392};
  if (name == "first_token_13_tiles") {
    const int64_t rows = 13 * config.tokens_per_tile();
    return {.tiles = 13, .prefill = rows + 64, .image_rows = rows};
  }
  if (name == "decode_batch_1") return {.batch = 1, .context = 512};
  if (name == "decode_batch_64") return {.batch = 64, .context = 1024};
  if (name == "decode_batch_256") return {.batch = 256, .context = 1024};
  return {};
}

/// Decode steps that are timed together, since they overlap with the host's work: as many as show their steady state.
int64_t decode_steps(bool asynchronous) { return asynchronous ? 32 : 1; }

/// Room for the largest of the rows.
BenchLimits limits_for(const std::vector<std::string>& rows, const ModelConfig& config) {
  BenchLimits limits;
  for (const std::string& name : rows) {
    const Workload w = workload_of(name, config);
    limits.tiles = std::max(limits.tiles, w.tiles);
    limits.step_tokens = std::max({limits.step_tokens, w.prefill, w.batch});
    limits.sequences = std::max(limits.sequences, w.batch);
    const int64_t context = std::max(w.context > 0 ? w.context + decode_steps(true) : 0, w.prefill);
    const int64_t room = (context + BenchLimits::kRoom - 1) / BenchLimits::kRoom * BenchLimits::kRoom;
    limits.context = std::max(limits.context, context);
    limits.kv_tokens = std::max(limits.kv_tokens, std::max<int64_t>(1, w.batch) * room);
  }
  return limits;
}

/// `seconds` does the row's work and says what it took.
template <class Seconds>
Row measure_seconds(const std::string& name, double floor_s, int64_t repeat, const Seconds& seconds) {
  for (int i = 0; i < 2; ++i) seconds();  // warm up; a decode step is captured in its second run
  std::vector<double> times;
  for (int64_t i = 0; i < repeat; ++i) times.push_back(1e3 * seconds());
  std::sort(times.begin(), times.end());
  const size_t n = times.size();
  const double median = n % 2 ? times[n / 2] : (times[n / 2 - 1] + times[n / 2]) / 2;
  return {name, median, times.front(), times.back(), floor_s * 1e3};
}

template <class Body>
Row measure(const std::string& name, double floor_s, int64_t repeat, const Body& body) {
  return measure_seconds(name, floor_s, repeat, [&] {
    const auto begin = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  });
}

Row model_row(const std::string& name, BenchModel& model, const ModelConfig& config, Backend& backend,
              const DeviceSpeed& speed, int64_t element, int64_t repeat) {
  const Workload w = workload_of(name, config);
  double floor = 0;
  if (w.tiles > 0) floor += floor_seconds(vision_work(config, w.tiles, element), speed);
  if (w.prefill > 0) floor += floor_seconds(prefill_work(config, w.prefill, element), speed);
  if (w.batch > 0) floor += floor_seconds(decode_work(config, w.batch, w.context, element), speed);
  if (w.batch > 0)
    return measure_seconds(name, floor, repeat, [&] { return model.decode(w.batch, w.context, decode_steps(backend.asynchronous())); });
  return measure(name, floor, repeat, [&] {
    if (w.tiles > 0) model.encode(w.tiles, /*upload=*/w.prefill > 0);
    if (w.prefill > 0) model.prefill(w.prefill, w.image_rows);
    backend.synchronize();
  });
}

/// A 12-megapixel picture to 13 tiles on one thread; the floor is reading it once.
Row preprocess_row(const ModelConfig& config, const DeviceSpeed& speed, int64_t repeat) {
  Image image{4000, 3000, {}};
  image.rgb.resize(static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * 3);
  std::minstd_rand engine(5);
  for (uint8_t& v : image.rgb) v = static_cast<uint8_t>(engine() >> 11);
  const TilingOptions tiling{.image_size = static_cast<int>(config.vision.image_size)};
  const double floor = floor_seconds({.bytes = static_cast<double>(image.rgb.size())}, speed);
  return measure("preprocess_12mpx", floor, repeat, [&] {
    const auto tiled = cut_tiles(image, tiling);
    TESSERA_CHECK(tiled.ok(), "preprocess_12mpx: " + tiled.status().message());
  });
}

struct Report {
  std::string model, device;
  DType dtype = DType::kBF16;
  int64_t threads = 0;
  std::string products;  ///< which kernel multiplies
  DeviceSpeed speed;
  std::vector<Row> rows;
};

Result<Report> run(const BenchOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(std::vector<std::string> names, chosen_rows(options.only));
  const std::string& name = options.shape.empty() ? options.model : options.shape;
  if (name.empty() || (!options.shape.empty() && !options.model.empty()))
    return invalid_input("give a MODEL or --shape NAME, one of them");
  TESSERA_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(name, {.allow_catalogue = true}));
  if (!options.shape.empty()) checkpoint = random_checkpoint(checkpoint.config(), 0);
  const ModelConfig& config = checkpoint.config();
  Report report;
  report.model = name;
  report.dtype = options.device.compute(config.stored);
  TESSERA_ASSIGN_OR_RETURN(const BackendOptions device, options.device.backend_options());
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, open_backend(device));
  report.device = backend->limits().name;
  report.threads = backend->limits().kind == "cpu" ? backend->limits().multiprocessors : 0;
  for (const KernelChoice& choice : backend->explain(report.dtype))
    if (choice.op.rfind("linear", 0) == 0) report.products = choice.kernel;
  report.speed = backend->measure_speed(report.dtype);
  const auto element = static_cast<int64_t>(size_of(report.dtype));
  const bool needs_model = std::any_of(names.begin(), names.end(), [](const std::string& n) { return n != "preprocess_12mpx"; });
  std::unique_ptr<BenchModel> model;
  if (needs_model) {
    TESSERA_ASSIGN_OR_RETURN(model, BenchModel::load(checkpoint, *backend, report.dtype, limits_for(names, config)));
  }
  for (const std::string& row : names)
    report.rows.push_back(row == "preprocess_12mpx"
                              ? preprocess_row(config, report.speed, options.repeat)
                              : model_row(row, *model, config, *backend, report.speed, element, options.repeat));
  return report;
}

Json as_json(const Report& report) {
  Json json, machine, probes, rows = Json::array();
  machine.set("device", report.device);
  for (const DeviceReport& device : discover_devices())
    for (const auto& [key, value] : device.facts)
      if (device.name == "cpu" && key == "model") machine.set("cpu", value);
  if (report.threads > 0) machine.set("threads", report.threads);
  machine.set("model", report.model);
  machine.set("dtype", dtype_name(report.dtype));
  machine.set("products", report.products);
  probes.set("matrix_flops", report.speed.matrix_flops);
  probes.set("read_bytes_per_s", report.speed.read_bytes_per_s);
  for (const Row& row : report.rows) {
    Json one;
    one.set("name", row.name);
    one.set("median", row.median);
    one.set("minimum", row.minimum);
    one.set("maximum", row.maximum);
    one.set("unit", "ms");
    one.set("floor", row.floor);
    one.set("share_of_floor", row.share());
    rows.push_back(std::move(one));
  }
  json.set("machine", std::move(machine));
  json.set("probes", std::move(probes));
  json.set("rows", std::move(rows));
  return json;
}

void print_table(const Report& report) {
  std::printf("%s in %s on %s", report.model.c_str(), dtype_name(report.dtype), report.device.c_str());
  if (report.threads > 0) std::printf(", %lld threads", static_cast<long long>(report.threads));
  std::printf(", products by %s\nprobes: matrix peak %.1f GFLOP/s, read %.1f GB/s\n\n", report.products.c_str(),
              report.speed.matrix_flops * 1e-9, report.speed.read_bytes_per_s * 1e-9);
  std::printf("%-22s %12s %12s %12s %12s %8s\n", "row", "median ms", "minimum", "maximum", "floor", "share");
  for (const Row& row : report.rows)
    std::printf("%-22s %12.2f %12.2f %12.2f %12.2f %8.2f\n", row.name.c_str(), row.median, row.minimum, row.maximum,
                row.floor, row.share());
}

}  // namespace

int bench_command(std::span<const std::string> args) {
  if (std::find(args.begin(), args.end(), "--serving") != args.end()) return bench_serving_command(args);
  ArgParser parser("tessera bench", "Encode, prefill and decode figures beside the hardware's floor.", kFooter);
  BenchOptions options;
  parser.positional("MODEL", &options.model, "directory, cached repository, demo, or a released model's name",
                    /*required=*/false);
  parser.option("--shape", &options.shape, "the shape of this model with random weights");
  parser.option("--only", &options.only, "rows, joined by commas; default all of them");
  parser.option("--repeat", &options.repeat, 1, 10000, "times that each row is measured, after two warm-ups");
  options.device.add_to(parser);
  parser.flag("--serving", &options.serving, "replay a request mix instead; has its own options");
  parser.flag("--json", &options.json, "print one JSON object");
  if (auto code = parser.parse(args)) return *code;
  auto report = run(options);
  if (!report.ok()) return fail("bench", report.status());
  if (options.json)
    std::printf("%s\n", as_json(report.value()).dump(2).c_str());
  else
    print_table(report.value());
  return 0;
}

}  // namespace tessera::cli
