// Times a layer of a catalogue model's vision tower on a device, with random weights: the whole layer, each of its operators, and the
// layer without one of them.
//   tower_bench InternVL3-1B [--tiles 1] [--device cuda]
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/model_bench.h"
#include "bench/random.h"
#include "bench/timing.h"
#include "ops/attention.h"
#include "ops/linear.h"

namespace tessera {
namespace {

/// kLayers layers a repetition as one captured graph, in bf16 with folded norms. Weights are more than the device's cache holds.
class TowerBench {
 public:
  TowerBench(Backend& backend, const ModelConfig& config, int64_t tiles)
      : backend_(backend), c_(config.vision), tiles_(tiles), rows_(tiles * c_.tokens()) {
    const int64_t hidden = c_.hidden, width = c_.heads * c_.head_dim();
    for (int i = 0; i < kDistinct; ++i)
      layers_.push_back({weight(3 * width, hidden), weight(hidden, width), weight(c_.ffn, hidden), weight(hidden, c_.ffn)});
    x_ = random(DType::kBF16, rows_, hidden, 1.0f);
    qkv_ = random(DType::kBF16, rows_, 3 * width, 1.0f);
    attention_ = random(DType::kBF16, rows_, width, 1.0f);
    mlp_ = random(DType::kBF16, rows_, c_.ffn, 1.0f);
    constants_ = random(DType::kF32, 1, 4 * hidden, 0.1f);
    sums_ = random(DType::kF32, rows_, 2 * hidden / kSumColumns, 1.0f);
  }

  void rows() {
    const char* names[] = {"q | k | v", "attention", "projection", "fc1", "fc2"};
    row("layer", kAll);
    for (int i = 0; i < 5; ++i) row(std::string("  ") + names[i], 1 << i);
    for (int i = 0; i < 5; ++i) row(std::string("  layer without ") + names[i], kAll & ~(1 << i));
  }

 private:
  static constexpr int kLayers = 24, kDistinct = 6, kAll = 31;
  struct Layer {
    std::unique_ptr<Weight> qkv, proj, fc1, fc2;
  };
  std::unique_ptr<Weight> weight(int64_t rows, int64_t cols) { return random_weight(backend_, rows, cols); }
  Buffer random(DType dtype, int64_t rows, int64_t columns, float scale) { return random_buffer(backend_, dtype, rows, columns, scale); }

  void run(const Layer& l, int parts) {
    const int64_t hidden = c_.hidden, width = c_.heads * c_.head_dim();
    const OpContext& ctx = backend_.context();
    const auto of = [&](const Buffer& b, int64_t columns) { return b.tensor(DType::kBF16, {rows_, columns}); };
    const auto constants = [&](int64_t n) { return constants_.tensor(DType::kF32, {n}); };
    const Tensor x = of(x_, hidden), qkv = of(qkv_, 3 * width), attention = of(attention_, width), mlp = of(mlp_, c_.ffn);
    const Tensor sums = sums_.tensor(DType::kF32, {rows_, 2 * hidden / kSumColumns});
    if (parts & 1) linear(ctx, {.x = x, .weight = l.qkv.get(), .bias = constants(3 * width), .out = qkv, .x_sums = sums, .x_eps = 1e-6f});
    if (parts & 2)
      tile_attention(ctx, {.qkv = qkv, .tiles = tiles_, .tokens = c_.tokens(), .heads = static_cast<int>(c_.heads),
                           .head_dim = static_cast<int>(c_.head_dim()), .scale = 1.0f / std::sqrt(static_cast<float>(c_.head_dim())), .out = attention});
    const auto back = [&](const Tensor& from, const Weight* w) {
      linear(ctx, {.x = from, .weight = w, .bias = constants(hidden), .scale = constants(hidden), .residual = x, .out = x, .out_sums = sums});
    };
    if (parts & 4) back(attention, l.proj.get());
    if (parts & 8)
      linear(ctx, {.x = x, .weight = l.fc1.get(), .bias = constants(c_.ffn), .activation = Activation::kGelu, .out = mlp, .x_sums = sums, .x_eps = 1e-6f});
    if (parts & 16) back(mlp, l.fc2.get());
  }

  void row(const std::string& name, int parts) {
    const Timing t = time_of(backend_, ++key_, 20, [&] {
      for (int i = 0; i < kLayers; ++i) run(layers_[static_cast<size_t>(i % kDistinct)], parts);
    });
    std::printf("%-40s %7.2f us  (%.2f .. %.2f)\n", name.c_str(), t.median / kLayers * 1e3, t.least / kLayers * 1e3,
                t.most / kLayers * 1e3);
    std::fflush(stdout);
  }

  Backend& backend_;
  VisionConfig c_;
  int64_t tiles_, rows_;
  std::vector<Layer> layers_;
  Buffer x_, qkv_, attention_, mlp_, constants_, sums_;
  uint64_t key_ = 0;
};

int run(int argc, char** argv) {
  std::string model = "InternVL3-1B";
  int64_t tiles = 1;
  BackendOptions options{.device = "cuda"};
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool more = i + 1 < argc;
    if (word == "--device" && more)
      options.device = argv[++i];
    else if (word == "--tiles" && more)
      tiles = std::stoll(argv[++i]);
    else
      model = word;
  }
  const std::optional<OpenedModel> opened = open_for_bench(options, model);
  if (!opened) return 2;
  std::printf("== a layer of the tower of %s on %s, %lld tiles\n", model.c_str(), opened->backend->limits().name.c_str(),
              static_cast<long long>(tiles));
  TowerBench(*opened->backend, opened->checkpoint.config(), tiles).rows();
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) { return tessera::bench_main(tessera::run, argc, argv); }
