#include <gtest/gtest.h>

#include <random>

#include "backends/registry.h"
#include "models/checkpoint.h"
#include "runtime/engine_memory.h"
#include "runtime/token_engine.h"
#include "tests/runtime/engine_fixture.h"

// Alone or in a crowd: the tokens of a request and their logprobs, bit for bit, whatever the batch, chunks, cache hits,
// preemptions and threads, and whether steps are handed over ahead; with real kernels and a model whose rope parameters change at position 48.
namespace tessera {
namespace {

using testing::Collector;

ModelConfig tiny_config(DType stored) {
  ModelConfig config;
  config.vision = {.hidden = 32, .layers = 2, .heads = 2, .ffn = 64, .image_size = 56, .table_size = 56, .patch_size = 14};
  LanguageConfig& l = config.language;
  l.architecture = "Qwen2ForCausalLM";
  l.hidden = 32, l.layers = 3, l.heads = 4, l.kv_heads = 2, l.head_dim = 8, l.ffn = 64, l.vocab = 203, l.max_position = 48;
  l.qkv_bias = true;
  l.rope = {.kind = RopeKind::kDynamicNtk, .head_dim = 8, .base = 10000, .factor = 2, .max_position = 48};
  config.stored = stored;
  config.template_name = "internvl2_5";
  return config;
}

TokenRequest make_request(uint64_t seed) {
  std::mt19937_64 random(seed);
  TokenRequest request;
  const int64_t length = 5 + static_cast<int64_t>(random() % 60);
  for (int64_t i = 0; i < length; ++i) request.prompt.push_back(static_cast<int32_t>((i < 20 ? i : static_cast<int64_t>(random())) % 203 + 203) % 203);
  const int64_t tiles = static_cast<int64_t>(seed % 3);
  if (tiles > 0 && length > 4 * tiles + 2) {
    std::vector<uint8_t> pixels;
    std::mt19937_64 noise(seed % 2);
    for (int64_t i = 0; i < tiles * 3 * 56 * 56; ++i) pixels.push_back(static_cast<uint8_t>(noise()));
    request.images.push_back({.key = {seed % 2, static_cast<uint64_t>(tiles), 7, 7}, .first = 2, .tokens = tiles * 4, .tiles = tiles, .pixels = std::make_shared<testing::OwnTiles>(std::move(pixels), size_t{3 * 56 * 56})});
  }
  request.max_new_tokens = 4 + static_cast<int64_t>(random() % 30);
  request.sampling.top_logprobs = 5;
  request.logprobs = true;
  if (seed % 4 == 3) request.sampling.temperature = 1, request.sampling.seed = seed;
  if (seed % 5 == 4) request.repetition_penalty = 1.3;
  return request;
}

struct Setting {
  EngineShape shape{.session_len = 128, .max_sequences = 6, .step_tokens = 128, .vision_batch = 2, .block_size = 16, .kv_blocks = 64, .embedding_tiles = 4};
  int threads = 1;
  bool prefix_cache = false;
  std::string isa = "auto";
  bool ahead = false;  ///< steps are handed over before the one ahead is read
};

struct RealEngine {
  RealEngine(const Setting& setting, DType dtype)
      : checkpoint(random_checkpoint(tiny_config(dtype), 5)),
        backend(std::move(open_backend({.device = "cpu", .threads = setting.threads, .isa = setting.isa})).value()) {
    if (setting.ahead) backend = std::make_unique<testing::EarlyBackend>(std::move(backend));
    auto memory = build_engine_memory(checkpoint, *backend, backend->allocator(), backend->allocator(), setting.shape, {.compute = dtype});
    EXPECT_TRUE(memory.ok()) << memory.status().message();
    TokenEngineOptions options = testing::FakeEngine::stepped();
    options.prefix_cache = setting.prefix_cache;
    engine = std::make_unique<TokenEngine>(*backend, std::move(*memory), options);
    allocations = backend->allocator().allocations();
  }
  ~RealEngine() { EXPECT_EQ(backend->allocator().allocations(), allocations) << "device memory was allocated after start-up"; }
  std::shared_ptr<Collector> submit(uint64_t seed) { return submit(make_request(seed)); }
  std::shared_ptr<Collector> submit(TokenRequest request) {
    auto heard = std::make_shared<Collector>();
    auto id = engine->submit(std::move(request), heard);
    EXPECT_TRUE(id.ok()) << id.status().message();
    return heard;
  }
  void run() {
    while (engine->step())
      for (const std::string& wrong : engine->check_invariants()) ADD_FAILURE() << wrong;
  }
  Checkpoint checkpoint;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<TokenEngine> engine;
  uint64_t allocations = 0;
};

void expect_same(Collector& crowd, Collector& alone, const std::string& where) {
  ASSERT_EQ(crowd.tokens[0], alone.tokens[0]) << where;
  for (size_t i = 0; i < alone.events[0].size(); ++i) {
    EXPECT_EQ(crowd.events[0][i].logprob, alone.events[0][i].logprob) << where << ", token " << i;
    EXPECT_EQ(crowd.events[0][i].top, alone.events[0][i].top) << where << ", token " << i;
  }
}

class SameAnswer : public ::testing::TestWithParam<std::pair<DType, const char*>> {};

TEST_P(SameAnswer, AloneOrInACrowd) {
  const auto [dtype, isa] = GetParam();
  constexpr uint64_t kRequests = 10;
  std::vector<std::shared_ptr<Collector>> alone;
  Setting plain;
  plain.isa = isa;
  RealEngine single(plain, dtype);
  for (uint64_t seed = 0; seed < kRequests; ++seed) {
    alone.push_back(single.submit(seed));
    single.run();
    ASSERT_EQ(alone.back()->finishes.size(), 1u);
    ASSERT_EQ(alone.back()->finishes[0].reason, FinishReason::kLength) << alone.back()->finishes[0].status.message();
  }
  std::mt19937_64 random(11);
  uint64_t preemptions = 0, hits = 0;
  for (int trial = 0; trial < 8; ++trial) {
    Setting setting;
    setting.isa = isa;
    setting.threads = 1 + trial % 3;
    setting.prefix_cache = trial % 2 == 1;
    setting.ahead = trial % 3 == 2;
    setting.shape.block_size = trial % 4 < 2 ? 4 : 16;
    setting.shape.max_sequences = 2 + static_cast<int64_t>(random() % 6);
    setting.shape.step_tokens = setting.shape.max_sequences + static_cast<int64_t>(random() % 40);
    setting.shape.vision_batch = 1 + static_cast<int64_t>(random() % 3);
    setting.shape.kv_blocks = (128 + static_cast<int64_t>(random() % 64)) / setting.shape.block_size;
    RealEngine crowd(setting, dtype);
    std::vector<std::pair<uint64_t, std::shared_ptr<Collector>>> heard;
    for (uint64_t i = 0; i < 14; ++i) {
      const uint64_t seed = random() % kRequests;
      heard.emplace_back(seed, crowd.submit(seed));
      for (uint64_t steps = random() % 4; steps > 0; --steps) crowd.engine->step();
    }
    crowd.run();
    for (auto& [seed, collector] : heard)
      expect_same(*collector, *alone[seed], "trial " + std::to_string(trial) + ", request " + std::to_string(seed));
    preemptions += crowd.engine->stats().preemptions;
    hits += crowd.engine->stats().prefix_cache_hit_tokens;
  }
  EXPECT_GT(preemptions, 0u);
  EXPECT_GT(hits, 0u);
}

// Two answers grow past max_position_embeddings (48), where each new token has rope parameters of its own, until the
// blocks run out: the younger is preempted with 60 tokens or more, computed again from its prompt, and goes on as if
// nothing had been. Prompts on both sides of the border.
TEST_P(SameAnswer, PreemptedAcrossTheLengthThatRopeDependsOn) {
  const auto [dtype, isa] = GetParam();
  std::vector<TokenRequest> requests;
  for (const int64_t length : {40, 41, 55}) {
    TokenRequest& request = requests.emplace_back();
    for (int64_t i = 0; i < length; ++i) request.prompt.push_back(static_cast<int32_t>((i * i * 7 + length) % 203));
    request.max_new_tokens = 110 - length;
    request.sampling.top_logprobs = 5;
    request.logprobs = true;
  }
  Setting setting;
  setting.isa = isa;
  std::vector<std::shared_ptr<Collector>> alone;
  for (const TokenRequest& request : requests) {
    RealEngine single(setting, dtype);
    alone.push_back(single.submit(request));
    single.run();
  }
  for (const bool prefix_cache : {false, true}) {
    setting.prefix_cache = prefix_cache;
    setting.shape.block_size = 4;
    setting.shape.kv_blocks = 60;  // 240 tokens; three sequences of 110 want 84 blocks
    RealEngine crowd(setting, dtype);
    std::vector<std::shared_ptr<Collector>> heard;
    for (const TokenRequest& request : requests) heard.push_back(crowd.submit(request));
    size_t known = 0;
    while (crowd.engine->stats().preemptions == 0 && crowd.engine->step()) known = heard[2]->tokens[0].size();
    ASSERT_EQ(crowd.engine->stats().preemptions, 1u);
    EXPECT_GT(requests[1].prompt.size() + known, 60u) << "the border was passed before";
    crowd.run();
    for (size_t i = 0; i < requests.size(); ++i)
      expect_same(*heard[i], *alone[i], "request " + std::to_string(i) + (prefix_cache ? " with" : " without") + " prefix cache");
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, SameAnswer,
                         ::testing::Values(std::pair{DType::kBF16, "auto"}, std::pair{DType::kF32, "auto"},
                                           std::pair{DType::kBF16, "plain"}),
                         [](const auto& info) { return std::string(dtype_name(info.param.first)) + "_" + info.param.second; });

}  // namespace
}  // namespace tessera
