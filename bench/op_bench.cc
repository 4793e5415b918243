// Single operators at InternVL3-1B's shapes beside the machine's limits, probed in the same run:
//   op_bench [cpu|cuda] [isa] [threads] [dtype] [only rows whose name has this]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <time.h>

#include "backends/registry.h"
#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/sample.h"

namespace tessera {
namespace {

class RandomSource final : public WeightSource {
 public:
  explicit RandomSource(int64_t cols) : cols_(cols) {}
  void read(int64_t, int64_t begin, int64_t count, DType dtype, void* out) const override {
    std::minstd_rand engine(static_cast<unsigned>(begin + 1));
    std::vector<float> row(static_cast<size_t>(count * cols_));
    for (float& v : row) v = static_cast<float>(static_cast<int32_t>(engine()) % 2001 - 1000) * 3e-5f;
    convert(row.data(), DType::kF32, out, dtype, row.size());
  }

 private:
  int64_t cols_;
};

class Bench {
 public:
  Bench(Backend& backend, DType dtype, std::string only)
      : backend_(backend),
        dtype_(dtype),
        only_(std::move(only)),
        own_time_(backend.limits().kind == "cpu" && backend.limits().multiprocessors == 1),
        speed_(backend.measure_speed(dtype)) {
    std::printf("matrix peak %.0f GFLOP/s, read %.1f GB/s\n", speed_.matrix_flops * 1e-9, speed_.read_bytes_per_s * 1e-9);
  }

  Tensor make(DType dtype, std::initializer_list<int64_t> shape) {
    buffers_.push_back(backend_.allocator().allocate(dtype, shape, MemoryLine::kActivations, "bench"));
    const Tensor t = buffers_.back().tensor(dtype, shape);
    if (dtype == DType::kF32 || dtype == dtype_) {
      RandomSource source(t.row_elements());
      std::vector<char> host(t.bytes());
      source.read(0, 0, t.rows(), dtype, host.data());
      backend_.upload(host.data(), t);
    }
    return t;
  }

  /// Now, in seconds: the thread's own time where one thread does all the work, so that a busy machine counts less.
  double now() const {
    timespec t{};
    clock_gettime(own_time_ ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }

  /// Times are best and median; work in FLOP and bytes gives the floor.
  void row(const std::string& name, double flops, double bytes, const std::function<void()>& body) {
    if (name.find(only_) == std::string::npos) return;
    body();
    backend_.synchronize();
    std::vector<double> times;
    double total = 0;
    while (times.size() < 5 || (total < 0.6 && times.size() < 200)) {
      const double begin = now();
      body();
      backend_.synchronize();
      times.push_back(now() - begin);
      total += times.back();
    }
    std::sort(times.begin(), times.end());
    const double best = times.front(), median = times[times.size() / 2];
    const double floor = std::max(flops / speed_.matrix_flops, bytes / speed_.read_bytes_per_s);
    std::printf("%-28s %9.3f ms best %9.3f median  %7.0f GFLOP/s %6.1f GB/s  %5.1f %% of floor\n", name.c_str(),
                best * 1e3, median * 1e3, flops / best * 1e-9, bytes / best * 1e-9, 100 * floor / best);
  }

  void linear_row(const std::string& name, int64_t m, int64_t n, int64_t k, Activation activation, WeightUse use) {
    if (name.find(only_) == std::string::npos) return;  // packing is the slow part
    const LinearSpec spec{.rows = n, .cols = k, .dtype = dtype_, .use = use};
    const RandomSource source(k);
    // Enough copies that decode streams from memory, not from a cache.
    const auto copies = m < 16 ? std::max<int64_t>(1, (int64_t{256} << 20) / (n * k * 2)) : 1;
    std::vector<std::unique_ptr<Weight>> weights;
    for (int64_t i = 0; i < copies; ++i)
      weights.push_back(backend_.make_weight(spec, &source, backend_.allocator(), MemoryLine::kLanguageWeights, name));
    const int64_t columns = use == WeightUse::kGated ? n / 2 : n;
    const Tensor x = make(dtype_, {m, k}), out = make(use == WeightUse::kGated || activation != Activation::kNone ? dtype_ : DType::kF32, {m, columns});
    const double flops = 2.0 * static_cast<double>(m * n) * static_cast<double>(k * copies);
    const double bytes = static_cast<double>(n * k * copies) * static_cast<double>(size_of(dtype_));
    row(name, flops, m < 16 ? bytes : 0, [&] {
      for (const auto& weight : weights)
        linear(backend_.context(), {.x = x, .weight = weight.get(), .activation = activation, .out = out});
    });
  }

  void tile_attention_row(int64_t tiles) {
    const Tensor qkv = make(dtype_, {tiles * 1025, 3072}), out = make(dtype_, {tiles * 1025, 1024});
    row("tile_attention 1025x16x64", 4.0 * 1025 * 1025 * 1024 * static_cast<double>(tiles), 0, [&] {
      tile_attention(backend_.context(), {.qkv = qkv, .tiles = tiles, .tokens = 1025, .heads = 16, .head_dim = 64, .scale = 0.125f, .out = out});
    });
  }

  void paged_row(int64_t query, int64_t context) {
    const int block = 16;
    const int64_t kv = query + context, blocks = (kv + block - 1) / block;
    KvView view{{dtype_, block, 2, 64}, nullptr, blocks};
    view.base = make(DType::kU8, {blocks, static_cast<int64_t>(view.layout.block_bytes())}).data;
    std::vector<int32_t> table(static_cast<size_t>(blocks)), offsets = {0, static_cast<int32_t>(query)}, lengths = {static_cast<int32_t>(kv)};
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
    const Tensor tables = make(DType::kI32, {1, blocks}), off = make(DType::kI32, {2}), len = make(DType::kI32, {1});
    backend_.upload(table.data(), tables);
    backend_.upload(offsets.data(), off);
    backend_.upload(lengths.data(), len);
    const Tensor q = make(dtype_, {query, 14 * 64}), out = make(dtype_, {query, 14 * 64});
    const double pairs = static_cast<double>(query) * (static_cast<double>(context) + static_cast<double>(query + 1) / 2);
    row("paged_attention " + std::to_string(query) + " at " + std::to_string(context), 4.0 * pairs * 14 * 64, static_cast<double>(kv) * 512, [&] {
      paged_attention(backend_.context(), {.shape = {.tokens = query, .sequences = 1, .decodes = query == 1 ? 1 : 0, .max_query = query, .max_kv = kv}, .q = q, .query_offsets = off, .kv_lengths = len, .block_tables = tables, .heads = 14, .kv_heads = 2, .head_dim = 64, .scale = 0.125f, .kv = view, .out = out});
    });
  }

  void qkv_row(int64_t tokens) {
    KvView view{{dtype_, 16, 2, 64}, nullptr, tokens / 16 + 1};
    view.base = make(DType::kU8, {view.blocks, static_cast<int64_t>(view.layout.block_bytes())}).data;
    std::vector<int32_t> slots(static_cast<size_t>(tokens));
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int32_t>(i);
    const Tensor slot = make(DType::kI32, {tokens}), qkv = make(dtype_, {tokens, 18 * 64}), cs = make(DType::kF32, {tokens, 64});
    backend_.upload(slots.data(), slot);
    row("qkv_to_cache " + std::to_string(tokens), 0, static_cast<double>(qkv.bytes()), [&] {
      qkv_to_cache(backend_.context(), {.qkv = qkv, .cos_sin = cs, .slots = slot, .heads = 14, .kv_heads = 2, .head_dim = 64, .kv = view});
    });
  }

  void norm_row(int64_t rows, int64_t n) {
    const Tensor x = make(DType::kF32, {rows, n}), w = make(DType::kF32, {n}), out = make(dtype_, {rows, n});
    row("norm " + std::to_string(rows) + " x " + std::to_string(n), 0, static_cast<double>(x.bytes()), [&] {
      norm(backend_.context(), {.kind = NormKind::kLayer, .x = x, .weight = w, .bias = w, .out = out});
    });
  }

  void sample_row(int64_t vocab) {
    const Tensor logits = make(DType::kF32, {1, vocab});
    SamplingRow params{};
    const Tensor p = make(DType::kU8, {1, sizeof params});
    backend_.upload(&params, p);
    const SampleArgs args{.logits = logits, .valid_ids = vocab, .params = p,
                          .workspace = make(DType::kU8, {static_cast<int64_t>(backend_.sizing().sample_workspace_bytes(1, vocab))}),
                          .out_ids = make(DType::kI32, {1}), .out_logprobs = make(DType::kF32, {1})};
    row("sample greedy " + std::to_string(vocab), 0, static_cast<double>(vocab) * 4, [&] { sample(backend_.context(), args); });
  }

 private:
  Backend& backend_;
  DType dtype_;
  std::string only_;
  bool own_time_;
  DeviceSpeed speed_;
  std::vector<Buffer> buffers_;
};

int run(int argc, char** argv) {
  BackendOptions options;
  options.device = argc > 1 ? argv[1] : "cpu";
  if (argc > 2) options.isa = argv[2];
  if (argc > 3) options.threads = std::atoi(argv[3]);
  const std::string type = argc > 4 ? argv[4] : "bf16";
  const DType dtype = type == "f32" ? DType::kF32 : type == "f16" ? DType::kF16 : DType::kBF16;
  auto backend = open_backend(options);
  if (!backend.ok()) {
    std::fprintf(stderr, "op_bench: %s\n", backend.status().message().c_str());
    return 2;
  }
  for (const KernelChoice& choice : backend.value()->explain(dtype))
    if (choice.op.rfind("linear", 0) == 0) std::printf("linear: %s (%s)\n", choice.kernel.c_str(), choice.reason.c_str());
  Bench bench(*backend.value(), dtype, argc > 5 ? argv[5] : "");
  backend.value()->reserve_workspace({}, backend.value()->allocator());
  bench.linear_row("vit qkv 1025x3072x1024", 1025, 3072, 1024, Activation::kNone, WeightUse::kLinear);
  bench.linear_row("vit proj 1025x1024x1024", 1025, 1024, 1024, Activation::kNone, WeightUse::kLinear);
  bench.linear_row("vit fc1 1025x4096x1024 gelu", 1025, 4096, 1024, Activation::kGelu, WeightUse::kLinear);
  bench.linear_row("vit fc2 1025x1024x4096", 1025, 1024, 4096, Activation::kNone, WeightUse::kLinear);
  bench.tile_attention_row(1);
  bench.linear_row("llm gate_up 512x9728x896", 512, 9728, 896, Activation::kSiluMul, WeightUse::kGated);
  bench.linear_row("llm down 512x896x4864", 512, 896, 4864, Activation::kNone, WeightUse::kLinear);
  bench.paged_row(512, 0);
  bench.paged_row(512, 2880);
  bench.paged_row(1, 512);
  bench.qkv_row(512);
  bench.norm_row(1025, 1024);
  bench.linear_row("decode qkv 1x1152x896", 1, 1152, 896, Activation::kNone, WeightUse::kLinear);
  bench.linear_row("decode gate_up 1x9728x896", 1, 9728, 896, Activation::kSiluMul, WeightUse::kGated);
  bench.linear_row("decode down 1x896x4864", 1, 896, 4864, Activation::kNone, WeightUse::kLinear);
  bench.linear_row("decode head 1x151674x896", 1, 151674, 896, Activation::kNone, WeightUse::kLinear);
  bench.linear_row("decode gate_up 8x9728x896", 8, 9728, 896, Activation::kSiluMul, WeightUse::kGated);
  bench.sample_row(151674);
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) { return tessera::run(argc, argv); }
