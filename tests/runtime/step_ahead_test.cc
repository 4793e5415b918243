// A step is handed over before the tokens of the one ahead are known: answers are the same as without, and whatever ends
// meanwhile ends once, without a token too many and without its memory being lost.
#include <gtest/gtest.h>

#include "tests/runtime/engine_fixture.h"

namespace tessera {
namespace {

using namespace testing;

struct AheadEngine : FakeEngine {
  explicit AheadEngine(const EngineShape& shape = small_shape(), TokenEngineOptions options = stepped())
      : FakeEngine(shape, std::move(options), {}, FakeDevice::kLate) {
    late().launching = [this] {
      if (fail) throw DeviceError("launch refused");
      ++launched;
    };
  }
  LateModel& late() { return static_cast<LateModel&>(*model); }

  bool fail = false;
  int launched = 0;  ///< forwards since start-up
};

/// Notes how many forwards had been launched when each token was told.
struct Watching : Collector {
  explicit Watching(const AheadEngine& engine) : engine(engine) {}
  bool on_token(const TokenEvent& event) override {
    launched.push_back(engine.launched);
    return Collector::on_token(event);
  }
  const AheadEngine& engine;
  std::vector<int> launched;
};

std::vector<int> launches_at_tokens(const TokenRequest& request) {
  AheadEngine fake;
  fake.launched = 0;
  auto heard = std::make_shared<Watching>(fake);
  EXPECT_TRUE(fake.engine->submit(request, heard).ok());
  fake.run();
  return heard->launched;
}

TEST(StepAhead, IsLaunchedBeforeTheTokensOfTheOneBeforeAreTold) {
  EXPECT_EQ(launches_at_tokens(text_request(1, 20, 5)), (std::vector<int>{2, 3, 4, 5, 5})) << "the last token ends the answer: nothing follows";
}

TEST(StepAhead, WaitsForTokensThatTheHostNeeds) {
  TokenRequest penalty = text_request(1, 20, 5), bias = text_request(1, 20, 5), answers = text_request(1, 20, 3);
  penalty.presence_penalty = 0.5;
  bias.logit_bias = {{3, 1.0f}};
  for (const TokenRequest& request : {penalty, bias}) EXPECT_EQ(launches_at_tokens(request), (std::vector<int>{1, 2, 3, 4, 5}));
  answers.n = 2;
  EXPECT_EQ(launches_at_tokens(answers), (std::vector<int>{1, 1, 3, 3, 3, 3})) << "answers part when their prompt is over";
}

std::vector<TokenRequest> mix() {
  std::vector<TokenRequest> requests;
  for (uint64_t i = 0; i < 40; ++i) {
    TokenRequest& request = requests.emplace_back(text_request(i % 7, 5 + static_cast<int64_t>(i * 13 % 80), 3 + static_cast<int64_t>(i * 7 % 40)));
    if (i % 3 == 0) add_picture(request, i % 5, 1 + static_cast<int64_t>(i % 4), 1 + static_cast<int64_t>(i % 2));
    if (request.images.size() == 1 && request.images[0].first + request.images[0].tokens >= static_cast<int64_t>(request.prompt.size())) request.images.clear();
    if (i % 4 == 1) request.sampling.temperature = 1, request.sampling.seed = i;
    if (i % 5 == 2) request.sampling.top_logprobs = 3, request.logprobs = true;
    if (i % 9 == 4) request.n = 3;
    if (i % 11 == 5) request.frequency_penalty = 0.7;
    if (i % 6 == 0) request.stop_ids = {static_cast<int32_t>(i), static_cast<int32_t>(i + 40)};
  }
  return requests;
}

class Ahead : public ::testing::TestWithParam<FakeDevice> {};

TEST_P(Ahead, AnswersAsWithoutIt) {
  EngineShape shape = small_shape();
  shape.kv_blocks = 90;  // some are preempted
  FakeEngine plain(shape), ahead(shape, FakeEngine::stepped(), {}, GetParam());
  std::vector<std::shared_ptr<Collector>> expected, heard;
  int64_t turn = 0;
  for (const TokenRequest& request : mix()) {
    expected.push_back(plain.submit(request));
    heard.push_back(ahead.submit(request));
    for (int64_t steps = turn++ % 4; steps > 0; --steps) plain.engine->step(), ahead.engine->step();
  }
  plain.run();
  ahead.run();
  EXPECT_GT(ahead.engine->stats().preemptions, 0u);
  EXPECT_EQ(ahead.engine->stats().kv_blocks_used, 0);
  for (size_t i = 0; i < heard.size(); ++i) {
    EXPECT_EQ(heard[i]->tokens, expected[i]->tokens) << "request " << i;
    for (const auto& [answer, events] : expected[i]->events)
      for (size_t t = 0; t < events.size(); ++t) {
        EXPECT_EQ(heard[i]->events[answer][t].logprob, events[t].logprob);
        EXPECT_EQ(heard[i]->events[answer][t].top, events[t].top);
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, Ahead, ::testing::Values(FakeDevice::kLate, FakeDevice::kEarly),
                         [](const auto& info) { return info.param == FakeDevice::kLate ? "late" : "early"; });

// The stop is seen when the step behind it is under way: what that one computes is dropped and found by nobody.
TEST(StepAhead, DropsWhatFollowsAStop) {
  AheadEngine fake;
  TokenRequest request = text_request(10, 20, 60);
  const std::vector<int32_t> whole = fake_answer(request);
  request.stop_ids = {whole[11]};
  const auto first = static_cast<size_t>(std::find(whole.begin(), whole.end(), whole[11]) - whole.begin());
  auto heard = fake.submit(request);
  fake.run();
  const std::vector<int32_t> answer(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(first) + 1);
  EXPECT_EQ(heard->tokens[0], answer);
  ASSERT_EQ(heard->finishes.size(), 1u);
  EXPECT_EQ(heard->finishes[0].completion_tokens, static_cast<int64_t>(answer.size()));
  EXPECT_EQ(fake.engine->stats().kv_blocks_used, 0);
  // Full blocks of what was computed before are found, the block with the surplus token is not.
  TokenRequest next = text_request(10, 20, 5);
  next.prompt.insert(next.prompt.end(), whole.begin(), whole.end());
  auto again = fake.submit(next);
  fake.run();
  EXPECT_EQ(again->tokens[0], fake_answer(next));
  EXPECT_EQ(again->finishes[0].cached_tokens, (20 + static_cast<int64_t>(first)) / 4 * 4);
}

TEST(StepAhead, CancelsAndDeadlinesEndOnceAndGiveBackAll) {
  double time = 0;
  TokenEngineOptions options = FakeEngine::stepped();
  options.clock = [&] { return time; };
  AheadEngine fake(small_shape(), options);
  const TokenRequest other = text_request(3, 30, 40);
  TokenRequest late = text_request(2, 20, 100);
  late.deadline_s = 5;
  RequestId id = 0;
  auto cancelled = fake.submit(text_request(1, 20, 100), &id), expired = fake.submit(late), goes_on = fake.submit(other);
  for (int i = 0; i < 6; ++i) fake.engine->step();
  const size_t told = cancelled->tokens[0].size();
  fake.engine->cancel(id);
  time = 6;
  fake.engine->step();
  fake.ASSERT_THAT_ALL_IS_WELL();
  for (auto& heard : {cancelled, expired}) {
    ASSERT_EQ(heard->finishes.size(), 1u);
    EXPECT_EQ(heard->finishes[0].reason, FinishReason::kCancelled);
    EXPECT_EQ(heard->tokens[0].size(), told);
  }
  fake.run();
  EXPECT_EQ(goes_on->tokens[0], fake_answer(other));
  EXPECT_EQ(fake.engine->stats().kv_blocks_used, 0);
}

// A listener that cancels everybody, itself included, while the next step is under way.
TEST(StepAhead, AListenerMayCancelAnybody) {
  AheadEngine fake;
  struct Cancelling : Collector {
    TokenEngine* engine = nullptr;
    std::vector<RequestId> ids;
    bool on_token(const TokenEvent& event) override {
      Collector::on_token(event);
      if (tokens[0].size() == 4)
        for (const RequestId id : ids) engine->cancel(id);
      return true;
    }
  };
  auto heard = std::make_shared<Cancelling>();
  heard->engine = fake.engine.get();
  auto own = fake.engine->submit(text_request(1, 20, 100), heard);
  ASSERT_TRUE(own.ok());
  RequestId id = 0;
  auto other = fake.submit(text_request(2, 20, 100), &id);
  heard->ids = {*own, id};
  fake.run();
  EXPECT_EQ(heard->tokens[0].size(), 4u);
  EXPECT_EQ(heard->finishes.size(), 1u);
  EXPECT_EQ(other->finishes.size(), 1u);
  EXPECT_EQ(fake.engine->stats().kv_blocks_used, 0);
}

TEST(StepAhead, AFailedLaunchEndsItsSequencesAloneAndOnce) {
  AheadEngine fake;
  auto heard = fake.submit(text_request(1, 20, 100));
  for (int i = 0; i < 5; ++i) fake.engine->step();
  fake.fail = true;
  fake.engine->step();
  fake.fail = false;
  fake.ASSERT_THAT_ALL_IS_WELL();
  ASSERT_EQ(heard->finishes.size(), 1u);
  EXPECT_NE(heard->finishes[0].status.message().find("launch refused"), std::string::npos);
  const TokenRequest next = text_request(2, 20, 9);
  auto second = fake.submit(next);
  fake.run();
  EXPECT_EQ(second->tokens[0], fake_answer(next));
}

// Pixels are read by the device after the step that they go up with was handed over, even if nobody wants them any more.
TEST(StepAhead, KeepsPixelsUntilTheirStepIsOver) {
  AheadEngine fake;
  TokenRequest request = text_request(1, 50, 6);
  add_picture(request, 200, 3, 2);
  const std::weak_ptr<const PictureTiles> pixels = request.images[0].pixels;
  const int64_t warm = fake.model->tiles_seen();
  fake.submit(text_request(2, 20, 60));
  for (int i = 0; i < 3; ++i) fake.engine->step();
  RequestId id = 0;
  fake.submit(std::move(request), &id);
  bool there = false;
  fake.model->hooks().vision = [&](int64_t, int64_t) { there = !pixels.expired(); };
  fake.engine->step();
  EXPECT_EQ(fake.model->tiles_seen(), warm) << "handed over";
  fake.engine->cancel(id);
  fake.engine->step();
  EXPECT_EQ(fake.model->tiles_seen(), warm + 3);
  EXPECT_TRUE(there);
  EXPECT_TRUE(pixels.expired());
  fake.run();
}

TEST(StepAhead, StoppingTheEngineEndsWhatIsUnderWay) {
  AheadEngine fake;
  auto heard = fake.submit(text_request(1, 20, 100));
  for (int i = 0; i < 5; ++i) fake.engine->step();
  fake.engine->stop();
  ASSERT_EQ(heard->finishes.size(), 1u);
  EXPECT_EQ(heard->finishes[0].reason, FinishReason::kCancelled);
}

}  // namespace
}  // namespace tessera
