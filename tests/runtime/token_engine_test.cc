#include "runtime/token_engine.h"

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

}  // namespace
}  // namespace tessera
