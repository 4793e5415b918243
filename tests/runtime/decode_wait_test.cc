// How long a running answer waits for its next token while a prompt is computed: what was asked for, on a CPU, too.
#include <gtest/gtest.h>

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
  EXPECT_EQ(largest_slice(0.1), 95);
  EXPECT_EQ(largest_slice(0.001), 16);  // the smallest piece
}

TEST(DecodeWait, IsAQuarterOfASecondOnACpu) { EXPECT_EQ(largest_slice(std::nullopt), 239); }

}  // namespace
}  // namespace tessera
