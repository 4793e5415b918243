// How long a running answer waits for its next token while a prompt is computed: what was asked for, on a CPU, too.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <optional>

#include "tests/runtime/engine_fixture.h"
#include "tests/support/wrapped_backend.h"

namespace tessera {
namespace {

using namespace testing;

/// A device on which a step takes what the test says.
class ClockedBackend final : public WrappedBackend {
 public:
  using WrappedBackend::WrappedBackend;
  double seconds_between(int, int) override { return step_s; }
  double step_s = 0;
};

// Tokens of the largest slice of a prompt beside a running answer, where a token takes a millisecond.
int64_t largest_slice(std::optional<double> wait_s) {
  ClockedBackend backend(std::move(open_backend({.device = "cpu", .threads = 1, .isa = "plain"})).value());
  auto model = std::make_unique<FakeModel>();
  int64_t largest = 0;
  model->hooks().forward = [&](const StepInput& input) {
    backend.step_s = 1e-3 * static_cast<double>(input.shape.tokens);
    if (input.shape.decodes > 0) largest = std::max(largest, input.shape.tokens - input.shape.decodes);
  };
  TokenEngineOptions options = FakeEngine::stepped();
  options.max_decode_wait_s = wait_s;
  EngineShape shape = small_shape();
  shape.session_len = 1024;
  shape.step_tokens = 512;
  TokenEngine engine(backend, reserve_engine_memory(std::move(model), backend, backend.allocator(), backend.host_allocator(), shape),
                     std::move(options));
  const auto stream = std::make_shared<Collector>(), prompt = std::make_shared<Collector>();
  EXPECT_TRUE(engine.submit(text_request(1, 40, 60), stream).ok());  // its prompt teaches what a token takes
  engine.step();
  EXPECT_TRUE(engine.submit(text_request(2, 600, 1), prompt).ok());
  while (prompt->finishes.empty()) engine.step();
  EXPECT_TRUE(stream->finishes.empty());
  return largest;
}

TEST(DecodeWait, IsWhatWasAskedForInPiecesOf16Tokens) {
  EXPECT_EQ(largest_slice(0.04), 31);  // a row of the step is the answer's own
  EXPECT_EQ(largest_slice(0.1), 79);  // nine tenths are planned
  EXPECT_EQ(largest_slice(0.001), 16);  // the smallest piece
}

TEST(DecodeWait, IsAQuarterOfASecondOnACpu) { EXPECT_EQ(largest_slice(std::nullopt), 223); }

// ---- Pictures and long prompts of many requests, on a device whose whole time is simulated

// What the device takes, seconds.
struct Costs {
  double step = 0.02, prompt_token = 0.001, tile_layer = 0.03;
};

class TimedBackend final : public WrappedBackend {
 public:
  TimedBackend(std::unique_ptr<Backend> inner, const double& now) : WrappedBackend(std::move(inner)), now_(now) {}
  void mark(int which) override { marks_[static_cast<size_t>(which)] = now_; }
  double seconds_between(int from, int to) override { return marks_[static_cast<size_t>(to)] - marks_[static_cast<size_t>(from)]; }

 private:
  const double& now_;
  std::array<double, kMarks> marks_{};
};

struct TimedListener : TokenListener {
  explicit TimedListener(const double& clock) : now(clock) {}
  bool on_token(const TokenEvent&) override {
    if (tokens++ > 0) longest = std::max(longest, now - last);
    last = now;
    return true;
  }
  void on_finish(const Finish&) override { ended = true; }
  const double& now;
  double last = 0, longest = 0;
  int64_t tokens = 0;
  bool ended = false;
};

class TimedEngine {
 public:
  TimedEngine(const Costs& costs, std::optional<double> wait)
      : backend_(std::move(open_backend({.device = "cpu", .threads = 1, .isa = "plain"})).value(), now_) {
    const EngineShape shape{.session_len = 2048, .max_sequences = 8, .step_tokens = 512, .vision_batch = 4, .block_size = 16,
                            .kv_blocks = 1024, .embedding_tiles = 64};
    auto owned = std::make_unique<FakeModel>();
    FakeModel& model = *owned;
    model.hooks().forward = [this, costs](const StepInput& input) {
      now_ += costs.step + costs.prompt_token * static_cast<double>(input.shape.tokens - input.shape.decodes);
    };
    model.hooks().vision = [this, costs, &model](int64_t first, int64_t layers) {
      if (first == 0) pass_tiles_ = model.tiles_seen() - tiles_before_, tiles_before_ = model.tiles_seen();
      now_ += costs.tile_layer * static_cast<double>(layers * pass_tiles_);
    };
    TokenEngineOptions options = FakeEngine::stepped();
    options.max_decode_wait_s = wait;
    options.clock = [this] { return now_; };
    engine_ = std::make_unique<TokenEngine>(
        backend_, reserve_engine_memory(std::move(owned), backend_, backend_.allocator(), backend_.host_allocator(), shape), options);
  }

  std::shared_ptr<TimedListener> submit(const TokenRequest& request) {
    auto listener = std::make_shared<TimedListener>(now_);
    auto id = engine_->submit(request, listener);
    EXPECT_TRUE(id.ok()) << id.status().message();
    return listener;
  }
  void steps(int count) {
    for (int i = 0; i < count; ++i) engine_->step();
  }
  void run() {
    while (engine_->step()) continue;
  }

 private:
  double now_ = 0;
  int64_t tiles_before_ = 0, pass_tiles_ = 0;
  TimedBackend backend_;
  std::unique_ptr<TokenEngine> engine_;
};

// Streams run; a picture or a long prompt comes every few steps.
double longest_wait(TimedEngine& engine) {
  std::vector<std::shared_ptr<TimedListener>> streams;
  for (uint64_t i = 0; i < 3; ++i) streams.push_back(engine.submit(text_request(i, 20, 900)));
  engine.steps(20);
  for (const auto& stream : streams) stream->longest = 0;  // what costs are is learnt from the first steps
  for (uint64_t i = 0; i < 20; ++i) {
    TokenRequest request = text_request(10 + i, 1200, 4);
    if (i % 2) add_picture(request, 100 + i, 13, 5);
    engine.submit(request);
    engine.steps(25);
  }
  double longest = 0;
  for (const auto& stream : streams) {
    EXPECT_FALSE(stream->ended) << "streams should run while others come";
    longest = std::max(longest, stream->longest);
  }
  engine.run();
  return longest;
}

TEST(StatedWait, HoldsWhateverPicturesAndPromptsCome) {
  TimedEngine engine({}, /*wait=*/0.4);
  const double longest = longest_wait(engine);
  EXPECT_LE(longest, 0.4 + 1e-9);
  EXPECT_GT(longest, 0.2) << "and the time that may be taken is taken";
}

TEST(StatedWait, IsAQuarterOfASecondOnACpuThatWasToldNothing) {
  TimedEngine engine({}, std::nullopt);
  EXPECT_LE(longest_wait(engine), 0.25 + 1e-9);
}

// The answer begins while a pass is under way that began when nobody answered: it is no larger for that.
TEST(StatedWait, HoldsForWhoBeginsInTheMiddleOfAPass) {
  TimedEngine engine({.step = 0.02, .prompt_token = 0.0005, .tile_layer = 0.1}, /*wait=*/0.25);
  engine.submit(text_request(1, 100, 3));
  TokenRequest first = text_request(2, 100, 3);
  add_picture(first, 1, 2, 5);
  engine.submit(first);
  engine.run();  // what costs are is known
  for (uint64_t i = 0; i < 6; ++i) {
    TokenRequest album = text_request(10 + i, 100, 3);
    add_picture(album, 10 + i, 13, 5);
    engine.submit(album);
  }
  engine.steps(2);
  const auto stream = engine.submit(text_request(3, 30, 100));
  engine.run();
  EXPECT_EQ(stream->tokens, 100);
  EXPECT_LE(stream->longest, 0.25 + 1e-9);
}

// A device so slow that the smallest pieces, 16 tokens of a prompt and a layer of a tile, take longer than that: they
// are what a stream waits for, no more.
TEST(StatedWait, ASlowDeviceTakesTheSmallestPieces) {
  const Costs slow{.step = 0.3, .prompt_token = 0.02, .tile_layer = 0.2};
  TimedEngine engine(slow, /*wait=*/0.25);
  EXPECT_LE(longest_wait(engine), slow.step + 16 * slow.prompt_token + slow.tile_layer + 1e-9);
}

}  // namespace
}  // namespace tessera
