// The public engine on the demo model: caches, many at once, cancellation, failures that end themselves.
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <future>
#include <sstream>
#include <thread>

#include "tessera/options.h"
#include "tests/support/engine_client.h"

namespace tessera {
namespace {

using testing::ask;
using testing::Recorder;

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

std::unique_ptr<Engine> open_demo(const std::function<void(EngineOptions&)>& change = {}) {
  EngineOptions options;
  options.model = std::string(TESSERA_SOURCE_DIR) + "/models/demo";
  testing::use_test_device(options);
  options.session_len = 2048;
  options.max_batch_size = 8;
  if (change) change(options);
  auto [engine, status] = open_engine(options);
  EXPECT_TRUE(status.ok()) << status.message();
  return std::move(engine);
}

Request question(const std::string& text, const std::string& picture = {}) {
  Request request;
  Message user{"user", {}};
  if (!picture.empty()) {
    ImageInput image;
    image.bytes = slurp(std::string(TESSERA_SOURCE_DIR) + "/examples/" + picture);
    request.images.push_back(std::move(image));
    user.content.push_back({"", 0});
  }
  user.content.push_back({text, -1});
  request.messages.push_back(std::move(user));
  request.max_new_tokens = 40;
  return request;
}

constexpr const char* kShapes = "01-shapes-448x448.png";
constexpr const char* kSign = "07-sign-672x448.png";

TEST(Engine, ASecondTurnComputesOnlyWhatIsNew) {
  const auto engine = open_demo();
  Request talk = question("Describe the image.", kShapes);
  const auto first = ask(*engine, talk);
  const EngineStats between = engine->stats();
  talk.messages.push_back({"assistant", {{first->answer().text, -1}}});
  talk.messages.push_back({"user", {{"How many objects do you see?", -1}}});
  const auto second = ask(*engine, talk);
  EXPECT_EQ(second->answer().text, "4");
  EXPECT_EQ(engine->stats().tiles_encoded, between.tiles_encoded);
  // All but the last, incomplete block of what was there.
  EXPECT_GE(second->answer().finish.cached_tokens, first->prompt().prompt_tokens - 16);
}

TEST(Engine, ARepeatedPictureIsNeitherDecodedNorEncodedAgain) {
  const auto engine = open_demo();
  ask(*engine, question("How many objects do you see?", kShapes));
  const EngineStats before = engine->stats();
  EXPECT_EQ(ask(*engine, question("What shape is orange?", kShapes))->answer().text, "circle");
  const EngineStats after = engine->stats();
  EXPECT_EQ(after.tiles_encoded, before.tiles_encoded);
  EXPECT_EQ(after.vision_passes, before.vision_passes);
  EXPECT_EQ(after.tile_cache_hits, before.tile_cache_hits + 1);
}

TEST(Engine, SaltedRequestsShareNothing) {
  const auto engine = open_demo();
  Request request = question("How many objects do you see?", kShapes);
  request.cache_salt = "a";
  ask(*engine, request);
  const EngineStats before = engine->stats();
  request.cache_salt = "b";
  const auto other = ask(*engine, request);
  EXPECT_EQ(other->answer().text, "4");
  EXPECT_EQ(other->answer().finish.cached_tokens, 0);
  EXPECT_GT(engine->stats().tiles_encoded, before.tiles_encoded);
  EXPECT_EQ(engine->stats().tile_cache_hits, before.tile_cache_hits);
}

TEST(Engine, TheSameAnswerAloneOrInACrowd) {
  const std::vector<Request> requests = {question("Describe the image.", kShapes), question("Read the text.", kSign),
                                         question("Hello"), question("What shape is orange?", kShapes)};
  std::vector<std::vector<int32_t>> alone;
  for (const Request& request : requests) alone.push_back(ask(*open_demo(), request)->answer().ids);
  const auto engine = open_demo([](EngineOptions& o) {
    o.max_prefill_tokens = 48;
    o.threads = 1;
  });
  std::vector<std::shared_ptr<Recorder>> crowd;
  for (int round = 0; round < 3; ++round)
    for (const Request& request : requests) {
      crowd.push_back(std::make_shared<Recorder>());
      ASSERT_TRUE(engine->submit(request, crowd.back()).second.ok());
    }
  for (size_t i = 0; i < crowd.size(); ++i) {
    crowd[i]->wait();
    EXPECT_EQ(crowd[i]->answer().ids, alone[i % requests.size()]) << i;
  }
}

// In f32: the second time the prompt comes from the prefix cache, and only the CPU promises the same bits then. At this
// temperature bf16 rounding of a GPU's other sums is enough to draw another token.
TEST(Engine, SeveralAnswersShareThePrompt) {
  const auto engine = open_demo([](EngineOptions& o) { o.dtype = "f32"; });
  Request request = question("Hello");
  request.n = 3;
  request.sampling.temperature = 1.5;
  request.sampling.seed = 7;
  request.ignore_eos = true;
  request.max_new_tokens = 16;
  const auto heard = ask(*engine, request);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(heard->answer(i).ids.size(), 16u);
  EXPECT_NE(heard->answer(0).ids, heard->answer(1).ids);
  EXPECT_EQ(heard->prompts(), 1);
  const auto again = ask(*engine, request);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(again->answer(i).ids, heard->answer(i).ids);
}

TEST(Engine, PenaltiesAndBiasHaveTheirEffect) {
  const auto engine = open_demo();
  Request request = question("Hello");
  request.ignore_eos = true;
  request.max_new_tokens = 12;
  const int32_t first = ask(*engine, request)->answer().ids.at(0);
  request.sampling.logit_bias[first] = -100;
  EXPECT_NE(ask(*engine, request)->answer().ids.at(0), first);
  request.sampling.logit_bias = {{3, 100.0}};
  EXPECT_EQ(ask(*engine, request)->answer().ids, std::vector<int32_t>(12, 3));
  request.sampling.presence_penalty = 2;
  request.sampling.frequency_penalty = 2;
  request.sampling.logit_bias = {{3, 10.0}};
  const auto ids = ask(*engine, request)->answer().ids;
  EXPECT_LT(std::count(ids.begin(), ids.end(), 3), 12);
}

TEST(Engine, AResponseFormatIsKept) {
  const auto engine = open_demo();
  Request request = question("Describe the image.", kShapes);
  request.max_new_tokens = 200;
  request.response_format = {ResponseFormat::Kind::kJsonSchema,
                             R"({"type":"object","properties":{"colour":{"enum":["red","green"]},"count":{"type":"integer",
                             "minimum":0,"maximum":9}},"required":["colour","count"],"additionalProperties":false})"};
  const auto heard = ask(*engine, request);
  ASSERT_TRUE(heard->answer().finish.status.ok()) << heard->answer().finish.status.message();
  EXPECT_EQ(heard->answer().finish.reason, FinishReason::kStop);
  const auto json = Json::parse(heard->answer().text);
  ASSERT_TRUE(json.ok()) << heard->answer().text;
  EXPECT_EQ(json->as_object().size(), 2u) << heard->answer().text;
  EXPECT_TRUE(json->find("count")->is_integer());
  request.response_format.schema = R"({"type":"string","pattern":"a+"})";
  EXPECT_NE(ask(*engine, request)->answer().finish.status.message().find("pattern"), std::string::npos);
}

TEST(Engine, ACancelledRequestEndsAndLeavesNothing) {
  const auto engine = open_demo();
  Request request = question("Hello", kSign);
  request.ignore_eos = true;
  request.max_new_tokens = 1500;
  const int64_t before = engine->stats().kv_blocks_used;
  class Canceller : public Recorder {
   public:
    std::atomic<bool> started{false};
    void on_delta(const Delta& delta) override {
      started = true;
      Recorder::on_delta(delta);
    }
  };
  auto listener = std::make_shared<Canceller>();
  const auto [id, status] = engine->submit(request, listener);
  ASSERT_TRUE(status.ok());
  while (!listener->started) std::this_thread::yield();
  engine->cancel(id);
  listener->wait();
  EXPECT_EQ(listener->answer().finish.reason, FinishReason::kCancelled);
  // The listener hears of the end before the step that ends it is over.
  while (engine->stats().running > 0) std::this_thread::yield();
  EXPECT_EQ(engine->stats().kv_blocks_used, before);
}

TEST(Engine, AThrowingListenerEndsItsOwnRequestAlone) {
  const auto engine = open_demo();
  class Thrower : public Recorder {
   public:
    void on_delta(const Delta&) override { throw std::runtime_error("listener"); }
  };
  Request request = question("Hello");
  auto thrower = std::make_shared<Thrower>();
  ASSERT_TRUE(engine->submit(request, thrower).second.ok());
  EXPECT_EQ(ask(*engine, question("Read the text.", kSign))->answer().text, "Private PRIVATE");
  thrower->wait();
  EXPECT_EQ(thrower->answer().finish.reason, FinishReason::kError);
}

// A consumer that reads nothing: its listener keeps a bounded queue and cancels when that is full, from the engine's own
// thread. Its stream is bounded, and nobody else hears of it.
TEST(Engine, AStalledConsumerIsCutAndTheOthersGoOn) {
  static constexpr size_t kBound = 8;
  const auto engine = open_demo();
  class Bounded : public Recorder {
   public:
    Engine* engine = nullptr;
    std::atomic<RequestId> id{0};
    std::atomic<size_t> unread{0};
    void on_delta(const Delta& delta) override {
      while (id == 0) std::this_thread::yield();
      if (unread == kBound) return engine->cancel(id);
      ++unread;
      Recorder::on_delta(delta);
    }
  };
  Request endless = question("Hello");
  endless.ignore_eos = true;
  endless.max_new_tokens = 1500;
  auto stalled = std::make_shared<Bounded>();
  stalled->engine = engine.get();
  const auto [id, status] = engine->submit(endless, stalled);
  ASSERT_TRUE(status.ok()) << status.message();
  stalled->id = id;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(ask(*engine, question("Read the text.", kSign))->answer().text, "Private PRIVATE");
  stalled->wait();
  EXPECT_EQ(stalled->answer().finish.reason, FinishReason::kCancelled);
  EXPECT_EQ(stalled->unread, kBound);
  EXPECT_LE(stalled->answer().finish.completion_tokens, static_cast<int64_t>(kBound) + 2) << "ended within a step";
  while (engine->stats().running > 0) std::this_thread::yield();
  EXPECT_EQ(engine->stats().kv_blocks_used, 0);
}

// More pictures than the tile store holds, and tiles held by running answers: requests wait for room, none is lost, and
// text passes them.
TEST(Engine, PicturesWaitForRoomInHostMemory) {
  const auto engine = open_demo([](EngineOptions& o) {
    o.max_dynamic_patch = 4;
    o.tile_cache_bytes = 5 * 3 * 224 * 224;  // one picture of the most tiles
  });
  std::vector<std::shared_ptr<Recorder>> seeing;
  for (int i = 0; i < 6; ++i) {
    Request request = question("Read the text.", kSign);
    request.cache_salt = std::to_string(i);  // six different pictures
    request.ignore_eos = true;
    request.max_new_tokens = 30;
    seeing.push_back(std::make_shared<Recorder>());
    ASSERT_TRUE(engine->submit(request, seeing.back()).second.ok());
  }
  auto given_up = std::make_shared<Recorder>();
  Request last = question("Read the text.", kSign);
  last.cache_salt = "given up";
  const auto [id, status] = engine->submit(last, given_up);
  ASSERT_TRUE(status.ok());
  engine->cancel(id);
  EXPECT_EQ(ask(*engine, question("Hello"))->answer().finish.status.message(), "");
  for (const auto& one : seeing) {
    one->wait();
    EXPECT_EQ(one->answer().finish.reason, FinishReason::kLength) << one->answer().finish.status.message();
    EXPECT_EQ(one->answer().ids, seeing[0]->answer().ids);
  }
  given_up->wait();
  EXPECT_EQ(given_up->answer().finish.reason, FinishReason::kCancelled);
}

// Holds the engine's thread at its first token until it is let go.
struct Holding : Recorder {
  void on_delta(const Delta& delta) override {
    Recorder::on_delta(delta);
    if (!std::exchange(told, true)) here.set_value();
    gone.wait();
  }
  std::promise<void> here, go;
  std::shared_future<void> gone = go.get_future().share();
  bool told = false;
};

// Its turn to be prepared comes after its deadline, or the room for its tiles does: it is over, and nobody decodes it.
TEST(Engine, ADeadlineHoldsWhileARequestIsPrepared) {
  const auto engine = open_demo([](EngineOptions& o) {
    o.max_dynamic_patch = 4;
    o.tile_cache_bytes = 5 * 3 * 224 * 224;  // one picture of the most tiles
  });
  Request late = question("Read the text.", kSign);
  late.deadline_s = 0;
  const auto heard = ask(*engine, late);
  EXPECT_EQ(heard->answer().finish.reason, FinishReason::kCancelled);
  EXPECT_EQ(heard->answer().finish.status.code(), StatusCode::kDeadline);
  EXPECT_EQ(engine->stats().preprocess_s, 0) << "it was prepared all the same";

  auto holder = std::make_shared<Holding>();
  ASSERT_TRUE(engine->submit(question("Read the text.", kSign), holder).second.ok());
  holder->here.get_future().wait();  // it has the room
  Request waiting = question("Read the text.", kSign);
  waiting.cache_salt = "another picture";
  waiting.deadline_s = 0.05;
  const auto waited = ask(*engine, waiting);
  EXPECT_EQ(waited->answer().finish.status.code(), StatusCode::kDeadline) << waited->answer().finish.status.message();
  holder->go.set_value();
  holder->wait();
  EXPECT_EQ(holder->answer().finish.reason, FinishReason::kStop);
}

TEST(Engine, ARequestOfMoreTilesThanTheHostHoldsIsRefused) {
  const auto engine = open_demo([](EngineOptions& o) {
    o.max_dynamic_patch = 4;
    o.tile_cache_bytes = 5 * 3 * 224 * 224;
  });
  Request request = question("x", kSign);
  request.images.push_back(request.images[0]);
  request.messages[0].content.insert(request.messages[0].content.begin(), ContentPart{"", 1});
  const Status status = ask(*engine, request)->answer().finish.status;
  EXPECT_EQ(status.code(), StatusCode::kDoesNotFit);
  EXPECT_NE(status.message().find("--tile-cache"), std::string::npos) << status.message();
}

TEST(Engine, ABadPictureEndsItsOwnRequestAlone) {
  const auto engine = open_demo();
  Request bad = question("x", kSign);
  bad.images[0].bytes.resize(200);
  const auto heard = ask(*engine, bad);
  EXPECT_EQ(heard->answer().finish.reason, FinishReason::kError);
  EXPECT_EQ(heard->answer().finish.status.code(), StatusCode::kUnprocessable);
  EXPECT_EQ(ask(*engine, question("Read the text.", kSign))->answer().text, "Private PRIVATE");
}

TEST(Engine, ATooLongPromptSaysSo) {
  const auto engine = open_demo();
  const auto heard = ask(*engine, question(std::string(200'000, 'x'), kSign));
  EXPECT_EQ(heard->answer().finish.status.code(), StatusCode::kTooLong) << heard->answer().finish.status.message();
}

TEST(Engine, TextBeyondAnySessionIsRefusedUnread) {
  const auto engine = open_demo([](EngineOptions& o) { o.session_len = 64; });
  for (const size_t bytes : {size_t{1} << 20, size_t{1} << 26}) {
    const Status status = ask(*engine, question(std::string(bytes, ' ')))->answer().finish.status;
    EXPECT_EQ(status.code(), StatusCode::kTooLong);
    EXPECT_NE(status.message().find(std::to_string(bytes) + " bytes of text; session_len is 64 tokens"), std::string::npos) << status.message();
  }
  const Status counted = ask(*engine, question(std::string(2000, ' ')))->answer().finish.status;
  EXPECT_NE(counted.message().find(" tokens; session_len is 64"), std::string::npos) << counted.message();
}

TEST(Engine, WhatCanNeverFitIsRefusedWithTheNumbers) {
  const auto engine = open_demo([](EngineOptions& o) { o.session_len = 300; });
  const auto heard = ask(*engine, question("x", kSign));
  EXPECT_EQ(heard->answer().finish.reason, FinishReason::kError);
  EXPECT_NE(heard->answer().finish.status.message().find("300"), std::string::npos);
}

TEST(Engine, TheSessionsEndCutsTheAnswer) {
  const auto engine = open_demo([](EngineOptions& o) { o.session_len = 64; });
  Request request = question("Hello");
  request.ignore_eos = true;
  request.max_new_tokens = std::nullopt;
  const auto heard = ask(*engine, request);
  EXPECT_EQ(heard->answer().finish.reason, FinishReason::kLength);
  EXPECT_EQ(heard->prompt().prompt_tokens + static_cast<int64_t>(heard->answer().ids.size()), 64);
}

TEST(Engine, DestructionEndsWhatIsLeft) {
  auto listener = std::make_shared<Recorder>();
  {
    const auto engine = open_demo();
    Request request = question("Hello");
    request.ignore_eos = true;
    request.max_new_tokens = 1500;
    ASSERT_TRUE(engine->submit(request, listener).second.ok());
  }
  listener->wait();
  EXPECT_EQ(listener->answer().finish.reason, FinishReason::kCancelled);
}

}  // namespace
}  // namespace tessera
