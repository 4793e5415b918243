#include <random>
#include <set>

#include "tests/runtime/engine_fixture.h"

namespace tessera {
namespace {

using namespace testing;

// What one submitted request must become, whatever else happens.
struct Expected {
  TokenRequest request;
  std::shared_ptr<Collector> heard;
  RequestId id = 0;
  bool may_fail = false;  ///< cancelled, expired, or in a step that was made to fail
};

struct Throwing : Collector {
  bool on_token(const TokenEvent& event) override {
    Collector::on_token(event);
    if (tokens[event.index].size() == 3) throw std::runtime_error("listener");
    return true;
  }
};

class ModelCheck {
 public:
  ModelCheck(uint64_t seed, FakeDevice device) : random_(seed), fake_(shape(), options(), rope(), device) {
    const auto forward = [this] {
      if (fail_forward_) throw DeviceError("made to fail");
    };
    if (auto* late = dynamic_cast<LateModel*>(fake_.model)) late->launching = forward;
    fake_.model->hooks().forward = [this, device, forward](const StepInput& input) {
      tokens_ = std::max(tokens_, input.shape.tokens);
      if (device != FakeDevice::kLate) forward();
    };
    if (device != FakeDevice::kLate)
      fake_.model->hooks().vision = [this](int64_t, int64_t) {
        if (fail_vision_) throw DeviceError("made to fail");
      };
    allocations_ = fake_.backend->allocator().allocations();
  }

  static EngineShape shape() {
    return {.session_len = 160, .max_sequences = 6, .step_tokens = 24, .vision_batch = 3, .block_size = 4,
            .kv_blocks = 60, .embedding_tiles = 8};
  }
  // Positions past 48 have rope parameters of their own, so that sharing and recomputing across it is part of the check.
  static RopeParams rope() {
    return {.kind = RopeKind::kDynamicNtk, .head_dim = 4, .base = 10000, .factor = 2, .max_position = 48};
  }
  TokenEngineOptions options() {
    TokenEngineOptions options = FakeEngine::stepped();
    options.max_queue = 20;
    options.clock = [this] { return time_ += 1e-4; };
    return options;
  }

  bool chance(double p) { return std::uniform_real_distribution<>(0, 1)(random_) < p; }
  int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_); }

  TokenRequest make_request() {
    // Few seeds and a common head, so that prefixes and pictures meet.
    TokenRequest request = text_request(static_cast<uint64_t>(draw(0, 3)), draw(1, 90), draw(1, 30));
    int64_t at = draw(0, 6);
    for (int64_t pictures = chance(0.5) ? draw(1, 3) : 0; pictures > 0; --pictures) {
      const int64_t tiles = draw(1, 5);
      if (at + tiles * FakeModel::kTokensPerTile > static_cast<int64_t>(request.prompt.size())) break;
      add_picture(request, static_cast<uint64_t>(draw(0, 5)), tiles, at);
      at += tiles * FakeModel::kTokensPerTile + draw(0, 3);
    }
    if (chance(0.2)) request.n = static_cast<int>(draw(2, 3));
    if (chance(0.5)) request.stop_ids = {static_cast<int32_t>(draw(0, 96))};
    request.priority = static_cast<int>(draw(0, 8)) / 4;
    request.client = "client " + std::to_string(draw(0, 2));
    if (chance(0.2)) request.cache_salt = "salt";
    return request;
  }

  void submit() {
    Expected expected;
    expected.request = make_request();
    expected.heard = chance(0.05) ? std::make_shared<Throwing>() : std::make_shared<Collector>();
    expected.may_fail = dynamic_cast<Throwing*>(expected.heard.get()) != nullptr;
    if (chance(0.05)) expected.request.deadline_s = 0.02, expected.may_fail = true;
    auto id = fake_.engine->submit(expected.request, expected.heard);
    if (!id.ok()) {
      ASSERT_TRUE(id.status().code() == StatusCode::kUnavailable) << id.status().message();
      return;
    }
    expected.id = *id;
    all_.push_back(std::move(expected));
  }

  void step() {
    if (chance(0.25)) submit();
    if (chance(0.03) && !all_.empty()) {
      Expected& victim = all_[static_cast<size_t>(draw(0, static_cast<int64_t>(all_.size()) - 1))];
      victim.may_fail = true;
      fake_.engine->cancel(victim.id);
    }
    fail_forward_ = chance(0.002);
    fail_vision_ = chance(0.005);
    if (fail_forward_ || fail_vision_)
      for (Expected& e : all_) e.may_fail = e.may_fail || static_cast<int>(e.heard->finishes.size()) < e.request.n;
    fake_.engine->step();
    fail_forward_ = fail_vision_ = false;
    for (const std::string& wrong : fake_.engine->check_invariants()) ADD_FAILURE() << wrong;
  }

  void check_end() {
    fake_.run();
    for (Expected& e : all_) {
      std::set<int> ended;
      for (const Finish& finish : e.heard->finishes) {
        EXPECT_TRUE(ended.insert(finish.index).second) << "an answer ended twice";
        const bool well = finish.reason == FinishReason::kStop || finish.reason == FinishReason::kLength;
        EXPECT_TRUE(well || e.may_fail) << finish.status.message();
        if (well) {
          EXPECT_EQ(e.heard->tokens[finish.index], reference(e)) << "request " << e.id;
        }
      }
      EXPECT_EQ(static_cast<int>(ended.size()), e.request.n) << "request " << e.id << " did not end";
    }
    const EngineStats stats = fake_.engine->stats();
    EXPECT_EQ(stats.kv_blocks_used, 0);
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.waiting, 0);
    EXPECT_EQ(stats.requests_finished + stats.requests_failed, all_.size());
    EXPECT_GT(stats.preemptions, 0u) << "the check should reach preemption";
    EXPECT_GT(stats.prefix_cache_hit_tokens, 0u);
    EXPECT_GT(stats.picture_cache_hits, 0u);
    EXPECT_LE(tokens_, shape().step_tokens);
    EXPECT_EQ(fake_.backend->allocator().allocations(), allocations_) << "device memory was allocated after start-up";
  }

  std::vector<int32_t> reference(const Expected& e) const { return fake_answer(e.request, rope()); }

 private:
  std::mt19937_64 random_;
  double time_ = 0;
  bool fail_forward_ = false, fail_vision_ = false;
  int64_t tokens_ = 0;
  uint64_t allocations_ = 0;
  FakeEngine fake_;
  std::vector<Expected> all_;
};

class EngineModelCheck : public ::testing::TestWithParam<FakeDevice> {};

TEST_P(EngineModelCheck, TenThousandRandomSteps) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ModelCheck check(seed, GetParam());
    for (int step = 0; step < 2500 && !::testing::Test::HasFailure(); ++step) check.step();
    check.check_end();
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, EngineModelCheck, ::testing::Values(FakeDevice::kCpu, FakeDevice::kLate, FakeDevice::kEarly),
                         [](const auto& info) {
                           return info.param == FakeDevice::kCpu ? "synchronous" : info.param == FakeDevice::kLate ? "late" : "early";
                         });

}  // namespace
}  // namespace tessera
