#include "runtime/token_engine.h"

#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "tests/runtime/engine_fixture.h"

namespace tessera {
namespace {

using namespace testing;

TEST(TokenEngine, AnswersAsTheReference) {
  FakeEngine fake(small_shape());
  const TokenRequest request = text_request(1, 23, 20);
  auto heard = fake.submit(request);
  fake.run();
  EXPECT_EQ(heard->tokens[0], fake_answer(request));
  ASSERT_EQ(heard->finishes.size(), 1u);
  EXPECT_EQ(heard->finishes[0].reason, FinishReason::kLength);
  EXPECT_EQ(heard->finishes[0].completion_tokens, 20);
}

TEST(TokenEngine, PicturesReachTheirPlaces) {
  FakeEngine fake(small_shape());
  TokenRequest request = text_request(2, 60, 12);
  add_picture(request, 11, 5, 3);
  add_picture(request, 12, 1, 23);
  add_picture(request, 13, 7, 30);
  auto heard = fake.submit(request);
  fake.run();
  EXPECT_EQ(heard->tokens[0], fake_answer(request));
  EXPECT_EQ(fake.model->tiles_seen(), 13);
}

TEST(TokenEngine, SecondTurnComputesOnlyWhatIsNew) {
  FakeEngine fake(small_shape());
  TokenRequest turn = text_request(3, 80, 10);
  add_picture(turn, 21, 6, 5);
  auto first = fake.submit(turn);
  fake.run();
  const int64_t tokens = fake.model->tokens_seen();
  turn.prompt.insert(turn.prompt.end(), first->tokens[0].begin(), first->tokens[0].end());
  for (int32_t id : {5, 6, 7, 8}) turn.prompt.push_back(id);
  auto second = fake.submit(turn);
  fake.run();
  EXPECT_EQ(second->tokens[0], fake_answer(turn));
  EXPECT_EQ(second->finishes[0].cached_tokens, 88);  // 94 tokens; the last answer token was never computed, blocks of 4
  EXPECT_EQ(fake.model->tokens_seen() - tokens, 94 - 88 + 9);
  EXPECT_EQ(fake.model->tiles_seen(), 6) << "the picture was encoded again";
}

TEST(TokenEngine, RepeatedPictureInAnotherPromptIsNotEncodedAgain) {
  FakeEngine fake(small_shape());
  TokenRequest one = text_request(4, 40, 4), two = text_request(5, 50, 4);
  add_picture(one, 31, 4, 2);
  add_picture(two, 31, 4, 17);
  fake.submit(one);
  fake.run();
  auto heard = fake.submit(two);
  fake.run();
  EXPECT_EQ(heard->tokens[0], fake_answer(two));
  EXPECT_EQ(fake.model->tiles_seen(), 4);
  EXPECT_EQ(fake.engine->stats().picture_cache_hits, 1u);
}

TEST(TokenEngine, TilesOfDifferentRequestsShareAPass) {
  FakeEngine fake(small_shape());
  for (uint64_t i = 0; i < 3; ++i) {
    TokenRequest request = text_request(i, 20, 2);
    add_picture(request, 40 + i, 1, 3);
    fake.submit(request);
  }
  fake.run();
  EXPECT_EQ(fake.engine->stats().vision_passes, 1u);
}

TEST(TokenEngine, SaltsKeepPromptsApart) {
  FakeEngine fake(small_shape());
  TokenRequest request = text_request(6, 41, 2);
  request.cache_salt = "a";
  fake.submit(request);
  fake.run();
  request.cache_salt = "b";
  auto other = fake.submit(request);
  fake.run();
  EXPECT_EQ(other->finishes[0].cached_tokens, 0);
  auto same = fake.submit(request);
  fake.run();
  EXPECT_EQ(same->finishes[0].cached_tokens, 40);
}

TEST(TokenEngine, SeveralAnswersShareThePrompt) {
  FakeEngine fake(small_shape());
  TokenRequest request = text_request(7, 42, 16);
  request.n = 4;
  request.sampling.temperature = 1;
  request.sampling.seed = 99;
  auto heard = fake.submit(request);
  fake.engine->step();
  fake.ASSERT_THAT_ALL_IS_WELL();
  EXPECT_EQ(fake.engine->stats().kv_blocks_used, 10 + 4) << "ten full blocks for all, the last one each";
  fake.run();
  ASSERT_EQ(heard->finishes.size(), 4u);
  EXPECT_NE(heard->tokens[0], heard->tokens[1]);
  EXPECT_EQ(fake.model->tokens_seen(), 42 + 4 * 15);
  request.n = 1;  // the first answer is the one of n = 1 with this seed
  auto alone = fake.submit(request);
  fake.run();
  EXPECT_EQ(alone->tokens[0], heard->tokens[0]);
}

TEST(TokenEngine, GreedyAnswersOfNAreTheReference) {
  FakeEngine fake(small_shape());
  TokenRequest request = text_request(8, 43, 9);
  request.n = 3;
  auto heard = fake.submit(request);
  fake.run();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(heard->tokens[i], fake_answer(request));
}

TEST(TokenEngine, PenaltiesAndBiasesMoveTheChoice) {
  FakeEngine fake(small_shape());
  TokenRequest request = text_request(9, 20, 30);
  request.presence_penalty = 2;
  request.frequency_penalty = 100;  // no token twice
  request.logit_bias = {{5, 1000.0f}};
  auto heard = fake.submit(request);
  fake.run();
  std::vector<int32_t> tokens = heard->tokens[0];
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 5), 10) << "a bias of 1000 lasts for ten penalties of 100";
  std::sort(tokens.begin(), tokens.end());
  for (size_t i = 1; i < tokens.size(); ++i) {
    if (tokens[i] != 5) {
      EXPECT_NE(tokens[i], tokens[i - 1]);
    }
  }
}

TEST(TokenEngine, StopsAtStopIdsAndWhenTheListenerSaysSo) {
  FakeEngine fake(small_shape());
  TokenRequest request = text_request(10, 20, 30);
  const std::vector<int32_t> whole = fake_answer(request);
  request.stop_ids = {whole[7]};
  auto heard = fake.submit(request);
  fake.run();
  EXPECT_EQ(heard->finishes[0].reason, FinishReason::kStop);
  EXPECT_EQ(heard->tokens[0].back(), whole[7]);
  request.stop_ids.clear();
  auto stopping = std::make_shared<Collector>();
  stopping->stop_after = 3;
  ASSERT_TRUE(fake.engine->submit(request, stopping).ok());
  fake.run();
  EXPECT_EQ(stopping->tokens[0].size(), 3u);
  EXPECT_EQ(stopping->finishes[0].reason, FinishReason::kStop);
}

TEST(TokenEngine, RefusesAtOnceWhatNeverFits) {
  EngineShape shape = small_shape();
  shape.kv_blocks = 20;
  FakeEngine fake(shape);
  const auto refused = [&](TokenRequest request) {
    auto result = fake.engine->submit(std::move(request), std::make_shared<Collector>());
    return result.ok() ? Status() : result.status();
  };
  EXPECT_EQ(refused(text_request(1, 256, 1)).code(), StatusCode::kDoesNotFit);
  const Status blocks = refused(text_request(1, 60, 40));
  EXPECT_EQ(blocks.code(), StatusCode::kDoesNotFit);
  EXPECT_NE(blocks.message().find("25 KV blocks"), std::string::npos) << blocks.message();
  TokenRequest many = text_request(1, 10, 5);
  many.n = 9;
  EXPECT_EQ(refused(many).code(), StatusCode::kDoesNotFit);
  TokenRequest picture = text_request(1, 70, 2);
  add_picture(picture, 1, 17, 1);
  EXPECT_EQ(refused(picture).code(), StatusCode::kDoesNotFit);
  TokenRequest wrong = text_request(1, 10, 2);
  wrong.prompt[3] = 97;
  EXPECT_EQ(refused(wrong).code(), StatusCode::kInvalidInput);
  EXPECT_EQ(refused(TokenRequest{}).code(), StatusCode::kInvalidInput);
  EXPECT_FALSE(fake.engine->step());
}

TEST(TokenEngine, CancelFreesEverythingWithinOneStep) {
  FakeEngine fake(small_shape());
  TokenRequest request = text_request(11, 60, 100);
  add_picture(request, 50, 9, 2);
  RequestId id = 0;
  auto heard = fake.submit(request, &id);
  fake.engine->step();
  fake.engine->cancel(id);
  fake.engine->step();
  fake.ASSERT_THAT_ALL_IS_WELL();
  ASSERT_EQ(heard->finishes.size(), 1u);
  EXPECT_EQ(heard->finishes[0].reason, FinishReason::kCancelled);
  EXPECT_EQ(fake.engine->stats().kv_blocks_used, 0);
}

TEST(TokenEngine, FailedStepEndsItsRequestsAndNothingElse) {
  EngineShape shape = small_shape();
  shape.max_sequences = 2;
  FakeEngine fake(shape);
  auto a = fake.submit(text_request(1, 10, 30));
  auto b = fake.submit(text_request(2, 10, 30));
  const TokenRequest waiting = text_request(3, 10, 30);
  auto c = fake.submit(waiting);
  for (int i = 0; i < 5; ++i) fake.engine->step();
  fake.model->hooks().forward = [&](const StepInput&) { throw DeviceError("launch refused"); };
  fake.engine->step();
  fake.model->hooks().forward = nullptr;
  fake.run();
  for (auto& heard : {a, b}) {
    ASSERT_EQ(heard->finishes.size(), 1u);
    EXPECT_EQ(heard->finishes[0].reason, FinishReason::kError);
    EXPECT_NE(heard->finishes[0].status.message().find("launch refused"), std::string::npos);
  }
  EXPECT_EQ(c->tokens[0], fake_answer(waiting));
}

TEST(TokenEngine, FailedPictureEndsItsRequestAndNotTheText) {
  FakeEngine fake(small_shape());
  const TokenRequest text = text_request(2, 10, 10);
  auto plain = fake.submit(text);
  TokenRequest request = text_request(1, 40, 5);
  add_picture(request, 60, 2, 3);
  auto seeing = fake.submit(request);
  fake.model->hooks().vision = [&](int64_t, int64_t) { throw DeviceError("tower fell"); };
  fake.run();
  EXPECT_EQ(seeing->finishes[0].reason, FinishReason::kError);
  EXPECT_EQ(plain->tokens[0], fake_answer(text));
  fake.model->hooks().vision = nullptr;
  auto again = fake.submit(request);
  fake.run();
  EXPECT_EQ(again->tokens[0], fake_answer(request));
}

TEST(TokenEngine, TextDoesNotWaitBehindPictures) {
  double time = 0;
  TokenEngineOptions options = FakeEngine::stepped();
  options.clock = [&] { return time; };
  EngineShape shape = small_shape();
  shape.session_len = 2048;
  FakeEngine fake(shape, options);
  fake.model->hooks().vision = [&](int64_t, int64_t count) { time += 0.2 * static_cast<double>(count); };
  TokenRequest album = text_request(1, 200, 5);
  for (int64_t i = 0; i < 4; ++i) add_picture(album, 70 + static_cast<uint64_t>(i), 10, 1 + 41 * i);
  auto slow = fake.submit(album);
  fake.engine->step();
  auto quick = fake.submit(text_request(2, 12, 3));
  for (int i = 0; i < 3; ++i) fake.engine->step();
  EXPECT_EQ(quick->finishes.size(), 1u);
  EXPECT_TRUE(slow->tokens[0].empty());
  fake.run();
  EXPECT_EQ(slow->tokens[0], fake_answer(album));
}

// More pictures than there are places in the batch: a text that comes after all of them waits for none but those that are
// being encoded, and later for one place.
TEST(TokenEngine, TextPassesPicturesThatWait) {
  double time = 0;
  TokenEngineOptions options = FakeEngine::stepped();
  options.clock = [&] { return time; };
  EngineShape shape = small_shape();
  shape.max_sequences = 4;
  FakeEngine fake(shape, options);
  fake.model->hooks().vision = [&](int64_t, int64_t count) { time += 0.2 * static_cast<double>(count); };
  std::vector<std::shared_ptr<Collector>> pictures;
  const auto seen = [&] { return std::count_if(pictures.begin(), pictures.end(), [](const auto& p) { return !p->finishes.empty(); }); };
  for (uint64_t i = 0; i < 20; ++i) {
    TokenRequest request = text_request(i, 60, 30);
    add_picture(request, 100 + i, 9, 2);
    pictures.push_back(fake.submit(request));
  }
  for (int i = 0; i < 3; ++i) fake.engine->step();
  EXPECT_EQ(fake.engine->stats().running, 1) << "the tower has enough to do with one picture of nine tiles";
  auto quick = fake.submit(text_request(50, 12, 3));
  for (int i = 0; i < 4; ++i) fake.engine->step();
  EXPECT_EQ(quick->finishes.size(), 1u);
  while (seen() < 5) fake.engine->step();
  const auto before = seen();
  auto another = fake.submit(text_request(51, 12, 3));
  while (another->finishes.empty()) fake.engine->step();
  EXPECT_LE(seen(), before + 1) << "it took the first place that became free";
  fake.run();
  EXPECT_EQ(seen(), 20);
}

TEST(TokenEngine, HigherPriorityGoesFirstAndClientsTakeTurns) {
  EngineShape shape = small_shape();
  shape.max_sequences = 1;
  shape.step_tokens = 16;
  FakeEngine fake(shape);
  std::vector<int> order;
  struct Note : Collector {
    std::vector<int>* order;
    int name;
    void on_finish(const Finish&) override { order->push_back(name); }
  };
  const auto submit = [&](int name, const std::string& client, int priority) {
    TokenRequest request = text_request(static_cast<uint64_t>(name), 12, 4);
    request.client = client;
    request.priority = priority;
    auto note = std::make_shared<Note>();
    note->order = &order;
    note->name = name;
    ASSERT_TRUE(fake.engine->submit(request, note).ok());
  };
  for (int i = 0; i < 4; ++i) submit(i, "greedy", 0);
  submit(10, "modest", 0);
  submit(20, "urgent", 1);
  fake.run();
  ASSERT_EQ(order.size(), 6u);
  EXPECT_EQ(order[0], 20);
  EXPECT_LT(std::find(order.begin(), order.end(), 10) - order.begin(), 3) << "one of the greedy client's went before, not four";
}

TEST(TokenEngine, DeadlineEndsARequest) {
  double time = 0;
  TokenEngineOptions options = FakeEngine::stepped();
  options.clock = [&] { return time; };
  FakeEngine fake(small_shape(), options);
  TokenRequest request = text_request(1, 10, 100);
  request.deadline_s = 5;
  auto heard = fake.submit(request);
  fake.engine->step();
  time = 6;
  fake.engine->step();
  ASSERT_EQ(heard->finishes.size(), 1u);
  EXPECT_EQ(heard->finishes[0].status.code(), StatusCode::kDeadline);
}

// Allows one id at each position, then ends.
struct Script : TokenConstraint {
  std::vector<int32_t> ids;
  size_t at = 0;
  void fill_mask(std::span<uint32_t> words) override {
    std::fill(words.begin(), words.end(), 0u);
    words[static_cast<size_t>(ids[at]) / 32] |= 1u << (ids[at] % 32);
  }
  bool accept(int32_t token) override { return at < ids.size() && ids[at++] == token; }
  bool finished() const override { return at == ids.size(); }
  std::unique_ptr<TokenConstraint> clone() const override { return std::make_unique<Script>(*this); }
};

TEST(TokenEngine, AnswersKeepToTheirGrammar) {
  FakeEngine fake(small_shape());
  TokenRequest request = text_request(12, 21, 30), failing = text_request(13, 10, 5);
  request.n = 2;
  request.constraint = [] {
    auto script = std::make_unique<Script>();
    script->ids = {3, 96, 0, 50};
    return script;
  };
  failing.constraint = []() -> std::unique_ptr<TokenConstraint> { throw std::runtime_error("no such grammar"); };
  const TokenRequest plain = text_request(14, 10, 5);
  auto scripted = fake.submit(request), failed = fake.submit(failing), free = fake.submit(plain);
  fake.run();
  for (int i = 0; i < 2; ++i) EXPECT_EQ(scripted->tokens[i], (std::vector<int32_t>{3, 96, 0, 50}));
  EXPECT_EQ(scripted->finishes[0].reason, FinishReason::kStop);
  EXPECT_EQ(failed->finishes[0].reason, FinishReason::kError);
  EXPECT_EQ(free->tokens[0], fake_answer(plain));
}

TEST(TokenEngine, FullQueueRefuses) {
  TokenEngineOptions options = FakeEngine::stepped();
  options.max_queue = 2;
  FakeEngine fake(small_shape(), options);
  fake.submit(text_request(1, 5, 2));
  fake.submit(text_request(2, 5, 2));
  auto third = fake.engine->submit(text_request(3, 5, 2), std::make_shared<Collector>());
  EXPECT_EQ(third.status().code(), StatusCode::kUnavailable);
  fake.run();
  EXPECT_TRUE(fake.engine->submit(text_request(3, 5, 2), std::make_shared<Collector>()).ok());
  fake.run();
}

// Many threads submit and cancel while the engine's own thread steps: for the thread sanitizer, and for counts that
// return to where they began.
TEST(TokenEngine, ThreadsSubmitAndCancel) {
  TokenEngineOptions options;
  options.max_queue = 4000;
  FakeEngine fake(small_shape(), options);
  constexpr int kThreads = 4, kEach = 500;
  std::vector<std::vector<std::shared_ptr<Collector>>> heard(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int i = 0; i < kEach; ++i) {
        TokenRequest request = text_request(random() % 5, 1 + random() % 40, 1 + random() % 8);
        if (random() % 4 == 0 && request.prompt.size() > 12) add_picture(request, random() % 6, 1 + random() % 2, 1);
        auto collector = std::make_shared<Collector>();
        auto id = fake.engine->submit(request, collector);
        ASSERT_TRUE(id.ok()) << id.status().message();
        heard[static_cast<size_t>(t)].push_back(collector);
        if (random() % 3 == 0) fake.engine->cancel(*id);
        if (random() % 50 == 0) (void)fake.engine->stats();
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(fake.engine->drain(120));
  const EngineStats stats = fake.engine->stats();
  fake.engine->stop();
  for (auto& list : heard)
    for (auto& collector : list) EXPECT_EQ(collector->finishes.size(), 1u);
  EXPECT_EQ(fake.engine->stats().kv_blocks_used, 0);
  EXPECT_EQ(stats.requests_finished + stats.requests_failed, static_cast<uint64_t>(kThreads * kEach));
}

TEST(TokenEngine, StopTellsEverybody) {
  TokenEngineOptions options;
  FakeEngine fake(small_shape(), options);
  std::vector<std::shared_ptr<Collector>> heard;
  for (uint64_t i = 0; i < 30; ++i) heard.push_back(fake.submit(text_request(i, 30, 200)));
  fake.engine->stop();
  for (auto& collector : heard) ASSERT_EQ(collector->finishes.size(), 1u);
  EXPECT_EQ(fake.engine->submit(text_request(1, 5, 2), std::make_shared<Collector>()).status().code(), StatusCode::kUnavailable);
}

// Prints what the engine itself takes of a step with 64 decoding sequences: the whole step less the time from the
// model's start to the first token heard, which is the model's and the sampler's. Never fails on time.
TEST(TokenEngine, OverheadOfAStep) {
  const EngineShape shape{.session_len = 4096, .max_sequences = 64, .step_tokens = 1024, .vision_batch = 1, .block_size = 16,
                          .kv_blocks = 6000, .embedding_tiles = 4};
  const auto clock = [] { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); };
  double started = 0, computing = 0;
  struct Quiet : TokenListener {
    std::function<void()> heard;
    bool on_token(const TokenEvent&) override {
      heard();
      return true;
    }
    void on_finish(const Finish&) override {}
  };
  FakeEngine fake(shape);
  for (uint64_t i = 0; i < 64; ++i) {
    auto listener = std::make_shared<Quiet>();
    listener->heard = [&] {
      if (started > 0) computing += clock() - started;
      started = 0;
    };
    ASSERT_TRUE(fake.engine->submit(text_request(i, 20, 600), listener).ok());
  }
  while (fake.engine->stats().prefix_cache_queries_tokens < 64 * 20) fake.engine->step();
  fake.model->set_idle(true);
  fake.model->hooks().forward = [&](const StepInput&) { started = clock(); };
  constexpr int kSteps = 300;
  computing = 0;
  const double begin = clock();
  for (int i = 0; i < kSteps; ++i) fake.engine->step();
  const double all = clock() - begin;
  std::printf("engine step with 64 sequences: %.1f us, beside model and sampling %.1f us\n", all / kSteps * 1e6,
              (all - computing) / kSteps * 1e6);
  fake.engine->stop();
}

}  // namespace
}  // namespace tessera
