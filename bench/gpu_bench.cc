// Times the stages of a catalogue model with random weights on a device, each beside the floor that the same run
// measures: ViT passes, prefills, decode steps, and the sampling of their logits. Wall clock around synchronised
// repetitions; decode steps and ViT passes run as captured graphs.
//   gpu_bench InternVL3-8B [--device cuda] [--limit shared_memory_per_block=49152] [--parts probe,vit13,prefill,decode]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "backends/registry.h"
#include "models/checkpoint.h"
#include "models/model.h"
#include "ops/linear.h"
#include "ops/sample.h"

namespace tessera {
namespace {

struct Timing {
  double median = 0, least = 0, most = 0;  ///< milliseconds
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
    std::vector<int32_t> ids, positions, lengths, slots, index, offsets{0}, kv_lengths, table, last;
    const int64_t blocks = (context + 15) / 16;  // of a sequence
    for (int64_t s = 0; s < sequences; ++s) {
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
    StepInput input{.shape = {.tokens = sequences * tokens, .sequences = sequences, .decodes = tokens == 1 ? sequences : 0,
                              .max_query = tokens, .max_kv = context, .logit_rows = sequences},
                    .token_ids = ints(ids), .positions = ints(positions), .rope_lengths = ints(lengths),
                    .slots = ints(slots), .image_index = ints(index), .query_offsets = ints(offsets),
                    .kv_lengths = ints(kv_lengths), .block_tables = ints(table), .logit_rows = ints(last),
                    .image_rows = images_};
    input.block_tables = Tensor(input.block_tables.data, DType::kI32, {sequences, blocks});
    return input;
  }

  Timing time(uint64_t key, int repetitions, const std::function<void()>& body) {
    auto run = [&] { key ? backend_.run_captured(key, body) : body(); };
    for (int i = 0; i < 3; ++i) run();
    backend_.synchronize();
    std::vector<double> times;
    for (int i = 0; i < repetitions; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      run();
      backend_.synchronize();
      times.push_back(seconds_since(begin) * 1e3);
    }
    std::sort(times.begin(), times.end());
    return {times[times.size() / 2], times.front(), times.back()};
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
    else if (word == "--limit" && more) {
      const std::string limit = argv[++i];
      options.limits.emplace_back(limit.substr(0, limit.find('=')), std::stoll(limit.substr(limit.find('=') + 1)));
    } else model = word;
  }
  auto backend = open_backend(options);
  if (!backend.ok()) return std::fprintf(stderr, "%s\n", backend.status().message().c_str()), 2;
  auto checkpoint = Checkpoint::open(model, {.allow_catalogue = true});
  if (!checkpoint.ok()) return std::fprintf(stderr, "%s\n", checkpoint.status().message().c_str()), 2;
  std::printf("== %s on %s", model.c_str(), backend.value()->limits().name.c_str());
  for (const auto& limit : options.limits) std::printf(", %s=%lld", limit.first.c_str(), static_cast<long long>(limit.second));
  std::printf("\n");
  // "vit" is every size, "vit13" one of them.
  auto wanted = [&](const std::string& part, int64_t size) {
    const std::string list = "," + parts + ",";
    return list.find("," + part + ",") != std::string::npos ||
           list.find("," + part + std::to_string(size) + ",") != std::string::npos;
  };
  Bench bench(**backend, *checkpoint);
  if (wanted("probe", 0)) bench.probes();
  for (int64_t tiles : {1, 7, 13})
    if (wanted("vit", tiles)) bench.vision(tiles);
  for (int64_t tokens : {512, 3392})
    if (wanted("prefill", tokens)) bench.prefill(tokens);
  if (wanted("decode", 1)) bench.decode(1, 512);
  if (wanted("decode", 64)) bench.decode(64, 1100);
  if (wanted("decode", 256)) bench.decode(256, 1100);
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  try {
    return tessera::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
