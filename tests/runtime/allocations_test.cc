// After start-up the device's memory stands still, and a step takes little from the host's heap.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "tests/runtime/engine_fixture.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define TESSERA_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TESSERA_SANITIZED
#endif

namespace {
std::atomic<int64_t> heap_allocations{0};
}

#ifndef TESSERA_SANITIZED  // which bring an operator new of their own
void* operator new(size_t bytes) {
  ++heap_allocations;
  if (void* data = std::malloc(bytes == 0 ? 1 : bytes)) return data;
  throw std::bad_alloc();
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }
#endif

namespace tessera::testing {
namespace {

struct Quiet : TokenListener {
  bool on_token(const TokenEvent&) override { return true; }
  void on_finish(const Finish&) override {}
};

TEST(Allocations, NoneOfTheDeviceAfterStartUp) {
  FakeEngine fake(small_shape());
  const uint64_t device = fake.backend->allocator().allocations();
  const uint64_t host = fake.backend->host_allocator().allocations();
  EXPECT_GT(device, 0u);
  for (uint64_t i = 0; i < 30; ++i) {
    TokenRequest request = text_request(i, 60, 20);
    add_picture(request, i % 5, 1 + static_cast<int64_t>(i % 9), 3);
    request.n = 1 + static_cast<int>(i % 3);
    request.sampling.top_logprobs = static_cast<int>(i % 4);
    request.repetition_penalty = i % 2 ? 1.2 : 1.0;
    fake.submit(request);
  }
  fake.run();
  EXPECT_GT(fake.engine->stats().generated_tokens, 0u);
  EXPECT_EQ(fake.backend->allocator().allocations(), device);
  EXPECT_EQ(fake.backend->host_allocator().allocations(), host);
}

// A sequence's list of new tokens grows by doubling, a full block is named by a digest, and a row with edits remembers what
// they change: less than one for each of 64 answers.
TEST(Allocations, AStepTakesLittleFromTheHeap) {
#ifdef TESSERA_SANITIZED
  GTEST_SKIP() << "a sanitizer allocates itself";
#endif
  constexpr int64_t kSequences = 64, kSteps = 256;
  FakeEngine fake({.session_len = 1024, .max_sequences = kSequences, .step_tokens = 1024, .vision_batch = 1, .block_size = 16,
                   .kv_blocks = 3000, .embedding_tiles = 4});
  fake.model->set_idle(true);
  for (uint64_t i = 0; i < kSequences; ++i) {
    TokenRequest request = text_request(i, 20, 600);
    request.presence_penalty = i % 2 ? 0.5 : 0.0;
    ASSERT_TRUE(fake.engine->submit(request, std::make_shared<Quiet>()).ok());
  }
  for (int i = 0; i < 20; ++i) fake.engine->step();
  const int64_t before = heap_allocations;
  for (int64_t i = 0; i < kSteps; ++i) fake.engine->step();
  const double each = static_cast<double>(heap_allocations - before) / kSteps;
  std::printf("heap allocations a step of %d answers: %.1f\n", static_cast<int>(kSequences), each);
  EXPECT_LT(each, kSequences);
  fake.engine->stop();
}

}  // namespace
}  // namespace tessera::testing
