// A device that fails for good: what it was computing ends with the reason, so does what waits, and nobody hangs.
#include <gtest/gtest.h>

#include "tests/runtime/engine_fixture.h"
#include "tests/support/wrapped_backend.h"

namespace tessera {
namespace {

using namespace testing;

constexpr const char* kFault = "[cuda] synchronize: cudaErrorLaunchFailure; the last operator was linear, its kernel skinny_linear";

class LosableBackend final : public WrappedBackend {
 public:
  using WrappedBackend::WrappedBackend;
  bool lost() override { return fault; }
  bool asynchronous() const override { return ahead; }
  double seconds_between(int from, int to) override {
    if (fault) throw DeviceError(kFault);
    return WrappedBackend::seconds_between(from, to);
  }
  bool fault = false;
  bool ahead = false;
};

class LostDevice : public ::testing::Test {
 protected:
  LostDevice() : backend_(std::move(open_backend({.device = "cpu", .threads = 1, .isa = "plain"})).value()) {
    auto owned = std::make_unique<FakeModel>();
    model_ = owned.get();
    TokenEngineOptions options = FakeEngine::stepped();
    options.on_lost = [this](const Status& why) { told_.push_back(why.message()); };
    EngineShape shape = small_shape();
    shape.max_sequences = 2;
    engine_ = std::make_unique<TokenEngine>(
        backend_, reserve_engine_memory(std::move(owned), backend_, backend_.allocator(), backend_.host_allocator(), shape),
        std::move(options));
  }

  std::shared_ptr<Collector> submit(TokenRequest request) {
    auto heard = std::make_shared<Collector>();
    EXPECT_TRUE(engine_->submit(std::move(request), heard).ok());
    return heard;
  }

  void step() {
    engine_->step();
    for (const std::string& wrong : engine_->check_invariants()) ADD_FAILURE() << wrong;
  }

  static std::string reason(const Collector& heard) {
    EXPECT_EQ(heard.finishes.size(), 1u);
    EXPECT_EQ(heard.finishes.at(0).reason, FinishReason::kError);
    return heard.finishes.at(0).status.message();
  }

  LosableBackend backend_;
  FakeModel* model_ = nullptr;
  std::unique_ptr<TokenEngine> engine_;
  std::vector<std::string> told_;
};

TEST_F(LostDevice, EndsAllWithTheReasonAndRefusesMore) {
  const auto first = submit(text_request(1, 20, 50));
  const auto second = submit(text_request(2, 20, 50));
  const auto waiting = submit(text_request(3, 20, 50));
  step();
  ASSERT_TRUE(first->finishes.empty());
  model_->hooks().forward = [&](const StepInput&) {
    backend_.fault = true;
    throw DeviceError(kFault);
  };
  step();
  EXPECT_EQ(reason(*first), std::string("request 1: a step failed: ") + kFault);
  EXPECT_EQ(reason(*second), std::string("request 2: a step failed: ") + kFault);
  EXPECT_EQ(reason(*waiting), std::string("the device is lost: ") + kFault);
  ASSERT_EQ(told_.size(), 1u);
  EXPECT_EQ(told_[0], std::string("the device is lost: ") + kFault);
  const auto refused = engine_->submit(text_request(4, 5, 5), std::make_shared<Collector>());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(refused.status().message(), told_[0]);
  step();
  EXPECT_EQ(told_.size(), 1u) << "told once";
  EXPECT_TRUE(engine_->drain(0.1));
}

TEST_F(LostDevice, AFaultOfAVisionPassShowsWhereItIsWaitedFor) {
  TokenRequest request = text_request(1, 20, 5);
  add_picture(request, 7, 2, 0);
  const auto heard = submit(std::move(request));
  model_->hooks().vision = [&](int64_t, int64_t) { backend_.fault = true; };  // nothing is thrown until somebody waits
  step();
  EXPECT_EQ(reason(*heard), std::string("request 1: a picture could not be encoded: ") + kFault);
  EXPECT_EQ(told_.size(), 1u);
}

// Two steps are under way when it shows.
TEST_F(LostDevice, EndsAllOnceWhereStepsAreHandedOverAhead) {
  backend_.ahead = true;
  const auto first = submit(text_request(1, 20, 50)), second = submit(text_request(2, 20, 50)), waiting = submit(text_request(3, 20, 50));
  for (int i = 0; i < 5; ++i) step();
  ASSERT_FALSE(first->tokens[0].empty());
  backend_.fault = true;
  step();
  EXPECT_EQ(reason(*first), std::string("request 1: a step failed: ") + kFault);
  EXPECT_EQ(reason(*second), std::string("request 2: a step failed: ") + kFault);
  EXPECT_EQ(reason(*waiting), std::string("the device is lost: ") + kFault);
  EXPECT_EQ(told_.size(), 1u);
  step();
  EXPECT_TRUE(engine_->drain(0.1));
}

TEST_F(LostDevice, AFailureThatPassesEndsItsStepAlone) {
  const auto first = submit(text_request(1, 20, 50));
  model_->hooks().forward = [&](const StepInput&) { throw DeviceError("[cuda] launch: out of resources"); };
  step();
  EXPECT_EQ(reason(*first), "request 1: a step failed: [cuda] launch: out of resources");
  model_->hooks().forward = nullptr;
  const TokenRequest next = text_request(2, 20, 5);
  const auto second = submit(next);
  while (second->finishes.empty()) step();
  EXPECT_EQ(second->tokens[0], fake_answer(next));
  EXPECT_TRUE(told_.empty());
}

}  // namespace
}  // namespace tessera
