#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "backends/registry.h"
#include "runtime/token_engine.h"
#include "tests/support/late_device.h"

namespace tessera::testing {

/// Remembers what it is told.
struct Collector : TokenListener {
  bool on_token(const TokenEvent& event) override {
    std::lock_guard lock(mutex);
    events[event.index].push_back(event);
    tokens[event.index].push_back(event.id);
    return !stop_after || static_cast<int64_t>(tokens[event.index].size()) < stop_after;
  }
  void on_finish(const Finish& finish) override {
    std::lock_guard lock(mutex);
    finishes.push_back(finish);
  }
  std::mutex mutex;
  int64_t stop_after = 0;
  std::map<int, std::vector<int32_t>> tokens;
  std::map<int, std::vector<TokenEvent>> events;
  std::vector<Finish> finishes;
};

/// Which device a FakeEngine runs on: the plain CPU backend, or that one as an asynchronous device (LateBackend, EarlyBackend).
enum class FakeDevice { kCpu, kLate, kEarly };

/// An engine over a FakeModel, stepped by the test.
struct FakeEngine {
  explicit FakeEngine(const EngineShape& shape, TokenEngineOptions options = stepped(), const RopeParams& rope = {},
                      FakeDevice device = FakeDevice::kCpu) {
    backend = std::move(open_backend({.device = "cpu", .threads = 1, .isa = "plain"})).value();
    std::unique_ptr<FakeModel> owned;
    if (device == FakeDevice::kLate) {
      backend = std::make_unique<LateBackend>(std::move(backend));
      owned = std::make_unique<LateModel>(rope);
    } else {
      if (device == FakeDevice::kEarly) backend = std::make_unique<EarlyBackend>(std::move(backend));
      owned = std::make_unique<FakeModel>(rope);
    }
    model = owned.get();
    engine = std::make_unique<TokenEngine>(
        *backend, reserve_engine_memory(std::move(owned), *backend, backend->allocator(), backend->host_allocator(), shape),
        std::move(options));
  }
  std::shared_ptr<Collector> submit(TokenRequest request, RequestId* id = nullptr) {
    auto collector = std::make_shared<Collector>();
    auto result = engine->submit(std::move(request), collector);
    EXPECT_TRUE(result.ok()) << result.status().message();
    if (id && result.ok()) *id = *result;
    return collector;
  }
  static TokenEngineOptions stepped() {
    TokenEngineOptions options;
    options.own_thread = false;
    return options;
  }
  /// Steps until nothing is left, checking the bookkeeping after each step.
  void run(int64_t most = 100000) {
    while (engine->step()) {
      ASSERT_THAT_ALL_IS_WELL();
      ASSERT_GT(--most, 0) << "the engine never ends";
    }
    ASSERT_THAT_ALL_IS_WELL();
  }
  void ASSERT_THAT_ALL_IS_WELL() {
    for (const std::string& wrong : engine->check_invariants()) ADD_FAILURE() << wrong;
  }

  std::unique_ptr<Backend> backend;
  FakeModel* model = nullptr;
  std::unique_ptr<TokenEngine> engine;
};

inline EngineShape small_shape() {
  return {.session_len = 256, .max_sequences = 8, .step_tokens = 64, .vision_batch = 3, .block_size = 4, .kv_blocks = 400,
          .embedding_tiles = 16};
}

inline TokenRequest text_request(uint64_t seed, int64_t length, int64_t new_tokens) {
  TokenRequest request;
  for (int64_t i = 0; i < length; ++i)
    request.prompt.push_back(static_cast<int32_t>((seed * 7919 + static_cast<uint64_t>(i) * 104729 + seed * static_cast<uint64_t>(i * i)) % 97));
  request.max_new_tokens = new_tokens;
  return request;
}

/// Puts a picture over tokens of the prompt.
inline void add_picture(TokenRequest& request, uint64_t seed, int64_t tiles, int64_t first) {
  request.images.push_back(fake_picture(seed, tiles, first));
}

}  // namespace tessera::testing
