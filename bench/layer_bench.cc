// Times a decode layer of a catalogue model on a device, with random weights: the whole layer, each of its operators, and the
// layer without one of them, so that what an operator takes is told from what it costs beside its neighbours.
//   layer_bench InternVL3-8B [--sequences 64] [--context 1100] [--device cuda] [--limit shared_memory_per_block=49152]
#include <cmath>
#include <cstdio>
#include <deque>
#include <string>
#include <vector>

#include "bench/model_bench.h"
#include "bench/random.h"
#include "bench/timing.h"
#include "ops/decoder_layer.h"
#include "ops/linear.h"

namespace tessera {
namespace {

/// Decode layers alone, weights and cache of each their own so that nothing stays in the device's cache: the whole
/// layer, each of its operators, and the layer without one of them. kLayers calls a repetition as one captured graph.
class LayerBench {
 public:
  LayerBench(Backend& backend, const ModelConfig& config, int64_t sequences, int64_t context)
      : backend_(backend), config_(config.language), sequences_(sequences), context_(context) {
    const LanguageConfig& c = config_;
    const int64_t width = (c.heads + 2 * c.kv_heads) * c.head_dim;
    distinct_ = std::min<int64_t>(kLayers, c.hidden < 2048 ? kLayers : 4);
    for (int64_t i = 0; i < distinct_; ++i)
      layers_.push_back({weight(width, c.hidden), weight(c.hidden, c.heads * c.head_dim),
                         weight(2 * c.ffn, c.hidden, WeightUse::kGated), weight(c.hidden, c.ffn), Buffer()});
    const int64_t blocks = (context + 15) / 16;
    for (Layer& l : layers_) l.kv = random(DType::kBF16, sequences * blocks * 2 * c.kv_heads * 16, c.head_dim, 1.0f);
    x_ = random(DType::kF32, sequences, c.hidden, 1.0f);
    normed_ = random(DType::kBF16, sequences, c.hidden, 1.0f);
    qkv_ = random(DType::kBF16, sequences, width, 1.0f);
    attention_ = random(DType::kBF16, sequences, c.heads * c.head_dim, 1.0f);
    mlp_ = random(DType::kBF16, sequences, c.ffn, 1.0f);
    angles_ = random(DType::kF32, sequences, c.head_dim, 1.0f);
    norm_ = random(DType::kF32, 1, c.hidden, 1.0f);
    squares_ = random(DType::kF32, kPreparedRows, kPreparedParts, 1.0f);
    bias_ = random(DType::kF32, 1, width, 1.0f);
    std::vector<int32_t> offsets{0}, lengths, table, slots;
    for (int64_t s = 0; s < sequences; ++s) {
      offsets.push_back(static_cast<int32_t>(s + 1));
      lengths.push_back(static_cast<int32_t>(context));
      for (int64_t b = 0; b < blocks; ++b)
        table.push_back(static_cast<int32_t>((s * blocks + b) * 7919 % (sequences * blocks)));
      slots.push_back(table[static_cast<size_t>(s * blocks + blocks - 1)] * 16 +
                      static_cast<int32_t>((context - 1) % 16));
    }
    offsets_ = ints(offsets);
    lengths_ = ints(lengths);
    slots_ = ints(slots);
    table_ = Tensor(ints(table).data, DType::kI32, {sequences, blocks});
  }

  void rows() {
    const char* names[] = {"q | k | v, to cache", "attention", "o", "gate and up", "down"};
    row("layer", kWhole);
    row("layer by its operators", kAll);
    for (int i = 0; i < 5; ++i) row(std::string("  ") + names[i], 1 << i);
    for (int i = 0; i < 5; ++i) row(std::string("  layer without ") + names[i], kAll & ~(1 << i));
  }

 private:
  static constexpr int kLayers = 24, kAll = 31, kWhole = 63;  ///< kWhole: as one operator where the device has it
  struct Layer {
    std::unique_ptr<Weight> qkv, o, gate_up, down;
    Buffer kv;
  };
  std::unique_ptr<Weight> weight(int64_t rows, int64_t cols, WeightUse use = WeightUse::kLinear) { return random_weight(backend_, rows, cols, use); }
  Buffer random(DType dtype, int64_t rows, int64_t columns, float scale) { return random_buffer(backend_, dtype, rows, columns, scale); }
  Tensor ints(const std::vector<int32_t>& values) {
    const auto count = static_cast<int64_t>(values.size());
    Buffer& buffer =
        ints_.emplace_back(backend_.allocator().allocate(DType::kI32, {count}, MemoryLine::kActivations, "bench"));
    const Tensor tensor = buffer.tensor(DType::kI32, {count});
    backend_.upload(values.data(), tensor);
    backend_.synchronize();
    return tensor;
  }

  /// `prepared`: of a norm, by the product that ended x last.
  void run(const Layer& l, int parts, PreparedNorm& prepared) {
    const LanguageConfig& c = config_;
    const auto heads = static_cast<int>(c.heads), kv_heads = static_cast<int>(c.kv_heads),
               dim = static_cast<int>(c.head_dim);
    const int64_t width = (c.heads + 2 * c.kv_heads) * c.head_dim;
    const Tensor x = x_.tensor(DType::kF32, {sequences_, c.hidden}),
                 normed = normed_.tensor(DType::kBF16, {sequences_, c.hidden}),
                 qkv = qkv_.tensor(DType::kBF16, {sequences_, width}),
                 attention = attention_.tensor(DType::kBF16, {sequences_, c.heads * dim}),
                 mlp = mlp_.tensor(DType::kBF16, {sequences_, c.ffn});
    const NormArgs norm{
        .kind = NormKind::kRms, .x = x, .weight = norm_.tensor(DType::kF32, {c.hidden}), .eps = 1e-6f, .out = normed};
    const int64_t blocks = (context_ + 15) / 16;
    KvView kv{.layout = {DType::kBF16, 16, kv_heads, dim}, .base = l.kv.data(), .blocks = sequences_ * blocks};
    const OpContext& ctx = backend_.context();
    DecoderLayerArgs args{.project = {.product = {.x = x,
                                                  .input_norm = norm,
                                                  .weight = l.qkv.get(),
                                                  .bias = bias_.tensor(DType::kF32, {width}),
                                                  .out = qkv},
                                      .cache = {.qkv = qkv,
                                                .cos_sin = angles_.tensor(DType::kF32, {sequences_, dim}),
                                                .slots = slots_,
                                                .heads = heads,
                                                .kv_heads = kv_heads,
                                                .head_dim = dim,
                                                .kv = kv}},
                          .attention = {.shape = {.tokens = sequences_,
                                                  .sequences = sequences_,
                                                  .decodes = sequences_,
                                                  .max_query = 1,
                                                  .max_kv = context_},
                                        .q = qkv.columns(0, c.heads * dim),
                                        .query_offsets = offsets_,
                                        .kv_lengths = lengths_,
                                        .block_tables = table_,
                                        .heads = heads,
                                        .kv_heads = kv_heads,
                                        .head_dim = dim,
                                        .scale = 1.0f / std::sqrt(static_cast<float>(dim)),
                                        .kv = kv,
                                        .out = attention},
                          .o = {.x = attention, .weight = l.o.get(), .residual = x, .out = x},
                          .gate_up = {.x = x, .input_norm = norm, .weight = l.gate_up.get(), .activation = Activation::kSiluMul, .out = mlp},
                          .down = {.x = mlp, .weight = l.down.get(), .residual = x, .out = x}};
    if (parts == kWhole && decoder_layer(ctx, args)) return;
    args.project.product.prepared = args.gate_up.prepared = &prepared;
    args.o.prepares = args.down.prepares = &prepared;
    if (parts & 1) project_qkv(ctx, args.project);
    if (parts & 2) paged_attention(ctx, args.attention);
    if (parts & 4) linear(ctx, args.o);
    if (parts & 8) linear(ctx, args.gate_up);
    if (parts & 16) linear(ctx, args.down);
  }

  void row(const std::string& name, int parts) {
    const Timing t = time_of(backend_, ++key_, 20, [&] {
      PreparedNorm prepared{.weight = norm_.tensor(DType::kF32, {config_.hidden}),
                            .rows = normed_.tensor(DType::kBF16, {sequences_, config_.hidden}),
                            .squares = squares_.tensor(DType::kF32, {kPreparedRows, kPreparedParts})};
      for (int i = 0; i < kLayers; ++i) run(layers_[static_cast<size_t>(i % distinct_)], parts, prepared);
    });
    std::printf("%-40s %7.2f us  (%.2f .. %.2f)\n", name.c_str(), t.median / kLayers * 1e3, t.least / kLayers * 1e3,
                t.most / kLayers * 1e3);
    std::fflush(stdout);
  }

  Backend& backend_;
  LanguageConfig config_;
  int64_t sequences_, context_, distinct_ = 1;
  std::vector<Layer> layers_;
  Buffer x_, normed_, qkv_, attention_, mlp_, angles_, norm_, squares_, bias_;
  std::deque<Buffer> ints_;
  Tensor offsets_, lengths_, slots_, table_;
  uint64_t key_ = 0;
};

int run(int argc, char** argv) {
  std::string model = "InternVL3-8B";
  int64_t sequences = 1, context = 512;
  BackendOptions options{.device = "cuda"};
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool more = i + 1 < argc;
    if (word == "--device" && more)
      options.device = argv[++i];
    else if (word == "--sequences" && more)
      sequences = std::stoll(argv[++i]);
    else if (word == "--context" && more)
      context = std::stoll(argv[++i]);
    else if (word == "--limit" && more)
      impose(options, argv[++i]);
    else
      model = word;
  }
  const std::optional<OpenedModel> opened = open_for_bench(options, model);
  if (!opened) return 2;
  std::printf("== a layer of %s on %s, %lld sequences at %lld\n", model.c_str(), opened->backend->limits().name.c_str(),
              static_cast<long long>(sequences), static_cast<long long>(context));
  LayerBench(*opened->backend, opened->checkpoint.config(), sequences, context).rows();
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) { return tessera::bench_main(tessera::run, argc, argv); }
