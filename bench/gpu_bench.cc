// Times the stages of a catalogue model with random weights on a device, each beside the floor that the same run
// measures: ViT passes, prefills, decode steps, and the sampling of their logits. Wall clock around synchronised
// repetitions; decode steps and ViT passes run as captured graphs.
//   gpu_bench InternVL3-8B [--device cuda] [--limit shared_memory_per_block=49152] [--parts probe,vit13,prefill,decode]
// The part "attention" times that operator alone, "mixed" steps of decodes beside a slice of a prompt.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "bench/model_bench.h"
#include "bench/timing.h"
#include "models/model.h"
#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/sample.h"

namespace tessera {
namespace {

/// Attention alone, on random rows, kLayers calls a repetition as one captured graph.
class AttentionBench {
 public:
  AttentionBench(Backend& backend, const ModelConfig& config) : backend_(backend), config_(config) {
    values_.resize(size_t{1} << 20);
    uint32_t state = 1;
    for (bf16& v : values_) {
      state = state * 1664525u + 1013904223u;
      v = to_bf16(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-30f);
    }
  }

  void tiles(int64_t tiles) {
    const int heads = static_cast<int>(config_.vision.heads), dim = static_cast<int>(config_.vision.head_dim());
    const int64_t tokens = 1 + config_.vision.side() * config_.vision.side();
    const int64_t width = int64_t{heads} * dim;
    const Tensor qkv = random(tiles * tokens, 3 * width), out = random(tiles * tokens, width);
    const double flop = 4.0 * static_cast<double>(tiles * tokens * tokens * width);
    row("tile attention, " + std::to_string(tiles) + " tiles", flop / 1e12, "TFLOP/s", [&] {
      tile_attention(backend_.context(), {.qkv = qkv, .tiles = tiles, .tokens = tokens, .heads = heads, .head_dim = dim,
                                          .scale = 1.0f / std::sqrt(static_cast<float>(dim)), .out = out});
    });
  }

  /// `sequences` sequences whose last `tokens` of `context` tokens are queries.
  void paged(int64_t sequences, int64_t tokens, int64_t context) {
    const auto heads = static_cast<int>(config_.language.heads), kv_heads = static_cast<int>(config_.language.kv_heads), dim = static_cast<int>(config_.language.head_dim);
    KvView kv{.layout = {DType::kBF16, 16, kv_heads, dim}, .base = nullptr, .blocks = 0};
    const int64_t blocks = (context + 15) / 16;
    kv.blocks = sequences * blocks;
    kv.base = random(kv.blocks * 2 * kv_heads * 16, dim).data;
    const Tensor q = random(sequences * tokens, int64_t{heads} * dim), out = random(sequences * tokens, int64_t{heads} * dim);
    std::vector<int32_t> offsets, lengths(static_cast<size_t>(sequences), static_cast<int32_t>(context)), table;
    for (int64_t s = 0; s <= sequences; ++s) offsets.push_back(static_cast<int32_t>(s * tokens));
    for (int64_t b = 0; b < kv.blocks; ++b) table.push_back(static_cast<int32_t>(b * 7919 % kv.blocks));
    const PagedAttentionArgs args{
        .shape = {.tokens = sequences * tokens, .sequences = sequences, .decodes = tokens == 1 ? sequences : 0, .max_query = tokens, .max_kv = context},
        .q = q, .query_offsets = ints(offsets, 0), .kv_lengths = ints(lengths, 0), .block_tables = ints(table, sequences),
        .heads = heads, .kv_heads = kv_heads, .head_dim = dim, .scale = 1.0f / std::sqrt(static_cast<float>(dim)), .kv = kv, .out = out};
    const double pairs = static_cast<double>(sequences * tokens) * (static_cast<double>(context) - static_cast<double>(tokens - 1) / 2);
    const std::string name = std::to_string(sequences) + " x " + std::to_string(tokens) + " at " + std::to_string(context);
    if (tokens == 1)
      row("decode attention, " + name, 4e-9 * pairs * kv_heads * dim, "GB/s", [&] { paged_attention(backend_.context(), args); });
    else
      row("prefill attention, " + name, 4e-12 * pairs * heads * dim, "TFLOP/s", [&] { paged_attention(backend_.context(), args); });
  }

 private:
  static constexpr int kLayers = 24;

  Tensor random(int64_t rows, int64_t columns) {
    Buffer& buffer = buffers_.emplace_back(backend_.allocator().allocate(DType::kBF16, {rows, columns}, MemoryLine::kActivations, "bench"));
    const auto count = static_cast<int64_t>(values_.size());
    const Tensor flat = buffer.tensor(DType::kBF16, {rows * columns});
    for (int64_t at = 0; at < rows * columns; at += count) backend_.upload(values_.data(), flat.slice(at, std::min(count, rows * columns - at)));
    backend_.synchronize();
    return buffer.tensor(DType::kBF16, {rows, columns});
  }

  Tensor ints(const std::vector<int32_t>& values, int64_t rows) {
    const auto count = static_cast<int64_t>(values.size());
    Buffer& buffer = buffers_.emplace_back(backend_.allocator().allocate(DType::kI32, {count}, MemoryLine::kActivations, "bench"));
    backend_.upload(values.data(), buffer.tensor(DType::kI32, {count}));
    backend_.synchronize();
    return rows == 0 ? buffer.tensor(DType::kI32, {count}) : buffer.tensor(DType::kI32, {rows, count / rows});
  }

  void row(const std::string& name, double amount, const char* unit, const std::function<void()>& body) {
    const Timing t = time_of(backend_, ++key_, 20, [&] {
      for (int i = 0; i < kLayers; ++i) body();
    });
    std::printf("%-42s %9.4f ms a layer  (%.4f .. %.4f)  %7.0f %s\n", name.c_str(), t.median / kLayers, t.least / kLayers,
                t.most / kLayers, amount / (t.median / kLayers * 1e-3), unit);
    std::fflush(stdout);
  }

  Backend& backend_;
  ModelConfig config_;
  std::vector<bf16> values_;
  std::deque<Buffer> buffers_;
  uint64_t key_ = 5000;
};

class Bench {
 public:
  Bench(Backend& backend, const Checkpoint& checkpoint) : backend_(backend), config_(checkpoint.config()) {
    const auto begin = std::chrono::steady_clock::now();
    model_ = load_model(checkpoint, backend, backend.allocator(), {.compute = DType::kBF16, .shard = {}, .progress = {}})
                 .value();
    backend.synchronize();
    std::printf("load %.2f s (random numbers made on the host)\n", seconds_since(begin));
    model_->reserve({.vision_tiles = 13, .step_tokens = 3392, .step_sequences = 256, .logit_rows = 256, .max_kv = 3520},
                    backend.allocator());
    kv_.layout = model_->kv_layout(backend.sizing().kv_block_size());
    kv_.blocks = kKvBlocks;
    kv_.layer_stride = static_cast<size_t>(kv_.blocks) * kv_.layout.block_bytes();
    kv_memory_ = allocate(DType::kU8, static_cast<int64_t>(kv_.layer_stride) * model_->layers());
    kv_.base = kv_memory_.data();
    backend.fill_zero(kv_memory_.tensor(DType::kU8, {static_cast<int64_t>(kv_memory_.size())}));
    image_memory_ = allocate(model_->precision().activation, 3328 * config_.language.hidden);
    images_ = image_memory_.tensor(model_->precision().activation, {3328, config_.language.hidden});
    backend.fill_zero(images_);
    backend.synchronize();
  }

  void probes() {
    // A large product, as the same backend runs it, and the sampling of 64 rows.
    struct Source final : WeightSource {
      void read(int64_t, int64_t begin, int64_t count, DType, void* out) const override {
        auto* to = static_cast<bf16*>(out);
        uint32_t state = static_cast<uint32_t>(begin) * 2654435761u + 1;
        for (int64_t i = 0; i < count * 8192; ++i) {
          state = state * 1664525u + 1013904223u;
          to[i] = to_bf16((static_cast<float>(state >> 16) / 65536.0f - 0.5f) * 0.05f);
        }
      }
    } source;
    auto weight = backend_.make_weight({.rows = 8192, .cols = 8192}, &source, backend_.allocator(),
                                       MemoryLine::kLanguageWeights, "probe");
    Buffer x = allocate(DType::kBF16, int64_t{8192} * 8192), out = allocate(DType::kBF16, int64_t{8192} * 8192);
    std::vector<bf16> host(static_cast<size_t>(8192) * 8192);
    source.read(0, 7, 8192, DType::kBF16, host.data());
    const Tensor tx = x.tensor(DType::kBF16, {8192, 8192});
    backend_.upload(host.data(), tx);
    const Timing t = time(0, 20, [&] {
      linear(backend_.context(), {.x = tx, .weight = weight.get(), .out = out.tensor(DType::kBF16, {8192, 8192})});
    });
    std::printf("probe: product 8192^3 %.3f ms, %.0f TFLOP/s\n", t.median, 2 * 8.192 * 8.192 * 8.192 / t.median * 1e-3 * 1e3);
  }

  void vision(int64_t tiles) {
    const int64_t side = config_.vision.image_size;
    Buffer pixels = allocate(DType::kU8, tiles * 3 * side * side);
    std::vector<uint8_t> host(pixels.size());
    uint32_t state = 12345;
    for (uint8_t& v : host) v = static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
    backend_.upload(host.data(), pixels.tensor(DType::kU8, {static_cast<int64_t>(pixels.size())}));
    const int64_t rows = tiles * config_.tokens_per_tile();
    std::vector<int32_t> where(static_cast<size_t>(rows));
    for (size_t i = 0; i < where.size(); ++i) where[i] = static_cast<int32_t>(i);
    const Tensor destination = ints(where);
    const Timing t = time(static_cast<uint64_t>(1000 + tiles), 20, [&] {
      model_->vision_begin(backend_.context(), pixels.tensor(DType::kU8, {tiles, 3, side, side}));
      model_->vision_run(backend_.context(), 0, model_->vision_layers());
      model_->vision_finish(backend_.context(), destination, images_);
    });
    row("vit " + std::to_string(tiles) + " tiles", t);
  }

  void prefill(int64_t tokens) {
    const StepInput input = batch(1, tokens, tokens);
    row("prefill " + std::to_string(tokens),
        time(0, 10, [&] { model_->forward(backend_.context(), input, kv_); }));
  }

  /// A slice of a prompt that ends at `context` beside `decodes` sequences that have 1900 keys each.
  void mixed(int64_t decodes, int64_t tokens, int64_t context) {
    std::vector<Query> queries(static_cast<size_t>(decodes), {1, 1900});
    queries.push_back({tokens, context});
    const StepInput input = batch(queries);
    row(std::to_string(decodes) + " decodes, " + std::to_string(tokens) + " of a prompt at " + std::to_string(context),
        time(0, 10, [&] { model_->forward(backend_.context(), input, kv_); }));
  }

  void decode(int64_t sequences, int64_t context) {
    const StepInput input = batch(sequences, 1, context);
    const auto key = static_cast<uint64_t>(2000 + sequences);
    row("decode batch " + std::to_string(sequences) + " at " + std::to_string(context),
        time(key, 30, [&] { model_->forward(backend_.context(), input, kv_); }));
    const int64_t vocab = config_.language.vocab;
    Buffer params = allocate(DType::kU8, sequences * static_cast<int64_t>(sizeof(SamplingRow)));
    std::vector<SamplingRow> rows(static_cast<size_t>(sequences));
    backend_.upload(rows.data(), params.tensor(DType::kU8, {static_cast<int64_t>(sequences * sizeof(SamplingRow))}));
    Buffer workspace = allocate(DType::kU8, static_cast<int64_t>(backend_.sizing().sample_workspace_bytes(sequences, vocab)));
    Buffer ids = allocate(DType::kI32, sequences), logprobs = allocate(DType::kF32, sequences);
    const SampleArgs args{.logits = model_->forward(backend_.context(), input, kv_),
                          .valid_ids = vocab,
                          .params = params.tensor(DType::kU8, {sequences, sizeof(SamplingRow)}),
                          .workspace = workspace.tensor(DType::kU8, {static_cast<int64_t>(workspace.size())}),
                          .out_ids = ids.tensor(DType::kI32, {sequences}),
                          .out_logprobs = logprobs.tensor(DType::kF32, {sequences})};
    row("  greedy sampling of its " + std::to_string(sequences) + " rows", time(0, 20, [&] { sample(backend_.context(), args); }));
  }

 private:
  static constexpr int64_t kKvBlocks = 256 * 70;  ///< of 16 tokens

  struct Query {
    int64_t tokens = 1, context = 1;  ///< the last `tokens` of `context`
  };

  static double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  Buffer allocate(DType dtype, int64_t count) {
    return backend_.allocator().allocate(dtype, {count}, MemoryLine::kActivations, "bench");
  }

  Tensor ints(const std::vector<int32_t>& values) {
    Buffer& buffer = inputs_.emplace_back(allocate(DType::kI32, static_cast<int64_t>(values.size())));
    const Tensor tensor = buffer.tensor(DType::kI32, {static_cast<int64_t>(values.size())});
    backend_.upload(values.data(), tensor);
    backend_.synchronize();
    return tensor;
  }

  /// `sequences` queries of `tokens` tokens that end at `context`.
  StepInput batch(int64_t sequences, int64_t tokens, int64_t context) {
    return batch(std::vector<Query>(static_cast<size_t>(sequences), {tokens, context}));
  }

  /// Decodes first.
  StepInput batch(const std::vector<Query>& queries) {
    std::vector<int32_t> ids, positions, lengths, slots, index, offsets{0}, kv_lengths, table, last;
    StepShape shape{.sequences = static_cast<int64_t>(queries.size()), .logit_rows = static_cast<int64_t>(queries.size())};
    for (const Query& q : queries) {
      shape.tokens += q.tokens;
      shape.decodes += q.tokens == 1;
      shape.max_query = std::max(shape.max_query, q.tokens);
      shape.max_kv = std::max(shape.max_kv, q.context);
    }
    const int64_t blocks = (shape.max_kv + 15) / 16;  // of a sequence
    for (int64_t s = 0; s < shape.sequences; ++s) {
      const auto [tokens, context] = queries[static_cast<size_t>(s)];
      for (int64_t i = 0; i < tokens; ++i) {
        const int64_t position = context - tokens + i;
        ids.push_back(static_cast<int32_t>((s * 7919 + i * 104729) % config_.language.vocab));
        positions.push_back(static_cast<int32_t>(position));
        lengths.push_back(static_cast<int32_t>(context));
        slots.push_back(static_cast<int32_t>(s * blocks * 16 + position));
        index.push_back(-1);
      }
      offsets.push_back(static_cast<int32_t>(ids.size()));
      kv_lengths.push_back(static_cast<int32_t>(context));
      last.push_back(static_cast<int32_t>(ids.size()) - 1);
      for (int64_t b = 0; b < blocks; ++b) table.push_back(static_cast<int32_t>(s * blocks + b));
    }
    StepInput input{.shape = shape,
                    .token_ids = ints(ids), .positions = ints(positions), .rope_lengths = ints(lengths),
                    .slots = ints(slots), .image_index = ints(index), .query_offsets = ints(offsets),
                    .kv_lengths = ints(kv_lengths), .block_tables = ints(table), .logit_rows = ints(last),
                    .image_rows = images_};
    input.block_tables = Tensor(input.block_tables.data, DType::kI32, {shape.sequences, blocks});
    return input;
  }

  Timing time(uint64_t key, int repetitions, const std::function<void()>& body) {
    return time_of(backend_, key, repetitions, body);
  }

  static void row(const std::string& name, const Timing& t) {
    std::printf("%-34s %9.3f ms  (%.3f .. %.3f)\n", name.c_str(), t.median, t.least, t.most);
    std::fflush(stdout);
  }

  Backend& backend_;
  ModelConfig config_;
  std::unique_ptr<Model> model_;
  Buffer kv_memory_, image_memory_;
  Tensor images_;
  KvCacheMemory kv_;
  std::vector<Buffer> inputs_;
};

int run(int argc, char** argv) {
  std::string model = "InternVL3-8B", parts = "probe,vit,prefill,decode";
  BackendOptions options{.device = "cuda"};
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool more = i + 1 < argc;
    if (word == "--device" && more) options.device = argv[++i];
    else if (word == "--parts" && more) parts = argv[++i];
    else if (word == "--limit" && more)
      impose(options, argv[++i]);
    else
      model = word;
  }
  const std::optional<OpenedModel> opened = open_for_bench(options, model);
  if (!opened) return 2;
  std::printf("== %s on %s", model.c_str(), opened->backend->limits().name.c_str());
  for (const auto& limit : options.limits) std::printf(", %s=%lld", limit.first.c_str(), static_cast<long long>(limit.second));
  std::printf("\n");
  // "vit" is every usual size, "vit13" one of them ("vit4" another).
  const std::string list = "," + parts + ",";
  auto named = [&](const std::string& part) { return list.find("," + part + ",") != std::string::npos; };
  auto wanted = [&](const std::string& part, int64_t size) { return named(part) || named(part + std::to_string(size)); };
  if (wanted("attention", 0)) {
    AttentionBench bench(*opened->backend, opened->checkpoint.config());
    for (int64_t tiles : {1, 7, 13}) bench.tiles(tiles);
    for (int64_t tokens : {512, 3392}) bench.paged(1, tokens, tokens);
    bench.paged(1, 512, 3392);
    bench.paged(16, 200, 200);
    bench.paged(1, 1, 512);
    bench.paged(64, 1, 1100);
  }
  if (parts == "attention") return 0;
  Bench bench(*opened->backend, opened->checkpoint);
  if (wanted("probe", 0)) bench.probes();
  for (int64_t tiles = 1; tiles <= 13; ++tiles)
    if (named("vit" + std::to_string(tiles)) || (named("vit") && tiles % 6 == 1)) bench.vision(tiles);
  for (int64_t tokens : {512, 3392})
    if (wanted("prefill", tokens)) bench.prefill(tokens);
  if (wanted("mixed", 0)) {
    for (int64_t rows = 128; rows <= 1152; rows += 64) bench.mixed(0, rows, rows);
    for (int64_t rows = 128; rows <= 1152; rows += 64) bench.mixed(40, rows - 40, std::max<int64_t>(928, rows));
    for (int64_t rows : {512, 768, 1024}) bench.mixed(40, rows - 40, 1856);
    for (int64_t decodes : {8, 16, 24, 32, 48, 64}) bench.mixed(decodes, 512 - decodes, 928);
    for (int64_t rows : {1536, 2048, 3072}) bench.mixed(0, rows, rows);
  }
  if (wanted("decode", 1)) bench.decode(1, 512);
  if (wanted("decode", 64)) bench.decode(64, 1100);
  if (wanted("decode", 256)) bench.decode(256, 1100);
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) { return tessera::bench_main(tessera::run, argc, argv); }
