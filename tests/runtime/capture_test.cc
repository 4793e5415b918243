#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tests/runtime/engine_fixture.h"
#include "tests/support/wrapped_backend.h"

namespace tessera {
namespace {

using namespace testing;

// The CPU backend, pretending to replay: it notes what every key was recorded with.
class CapturingBackend final : public WrappedBackend {
 public:
  using WrappedBackend::WrappedBackend;
  void upload(const void* host, const Tensor& device) override {
    note_copy(host, device);
    inner_->upload(host, device);
  }
  void download(const Tensor& device, void* host) override {
    note_copy(host, device);
    inner_->download(device, host);
  }
  void download_in_turn(const Tensor& device, void* host, size_t pitch, const Tensor& turn) override {
    note_copy(host, device);
    copying_.push_back(reinterpret_cast<int64_t>(turn.data));
    inner_->download_in_turn(device, host, pitch, turn);
  }
  bool captures() const override { return true; }
  void run_captured(uint64_t key, std::span<const Piece> up, const std::function<void()>& record) override {
    upload_all(up);
    recording_ = true;
    key_ = key;
    ++runs;
    copying_.clear();
    record();
    const auto [found, added] = copies_.try_emplace(key_, copying_);
    if (!added) {
      EXPECT_EQ(found->second, copying_);
    }
    recording_ = false;
  }

  // A forward inside a capture: the same key has to see the same shapes and addresses.
  void note(const StepInput& in) {
    if (!recording_) return;
    const std::vector<int64_t> seen = {in.shape.tokens, in.shape.sequences, in.shape.decodes, in.shape.max_query, in.shape.max_kv,
                                       in.shape.logit_rows, reinterpret_cast<int64_t>(in.token_ids.data),
                                       reinterpret_cast<int64_t>(in.slots.data), reinterpret_cast<int64_t>(in.block_tables.data),
                                       reinterpret_cast<int64_t>(in.kv_lengths.data)};
    const auto [found, added] = shapes_.try_emplace(key_, seen);
    if (!added) {
      EXPECT_EQ(found->second, seen);
    }
  }
  size_t keys() const { return shapes_.size(); }
  int runs = 0;

 private:
  // A copy inside a capture: the same key has to copy the same bytes from and to the same places.
  void note_copy(const void* host, const Tensor& device) {
    if (!recording_) return;
    copying_.push_back(reinterpret_cast<int64_t>(host));
    copying_.push_back(reinterpret_cast<int64_t>(device.data));
    copying_.push_back(static_cast<int64_t>(device.bytes()));
  }

  std::vector<int64_t> copying_;
  std::map<uint64_t, std::vector<int64_t>> copies_;
  bool recording_ = false;
  uint64_t key_ = 0;
  std::map<uint64_t, std::vector<int64_t>> shapes_;
};

TEST(Capture, DecodeStepsRepeatAFewShapesAndAnswerTheSame) {
  CapturingBackend backend(std::move(open_backend({.device = "cpu", .threads = 1, .isa = "plain"})).value());
  auto owned = std::make_unique<FakeModel>();
  owned->hooks().forward = [&](const StepInput& in) { backend.note(in); };
  EngineShape shape = small_shape();
  shape.max_sequences = 7;
  TokenEngine engine(backend, reserve_engine_memory(std::move(owned), backend, backend.allocator(), backend.host_allocator(), shape),
                     FakeEngine::stepped());
  std::vector<std::pair<TokenRequest, std::shared_ptr<Collector>>> all;
  for (uint64_t i = 0; i < 12; ++i) {
    TokenRequest request = text_request(i, 5 + static_cast<int64_t>(i) * 3, 6 + static_cast<int64_t>(i) * 4);
    if (i % 3 == 0) request.sampling.top_logprobs = static_cast<int>(i), request.logprobs = true;
    if (i % 4 == 0) request.repetition_penalty = 1.000001;
    all.emplace_back(request, std::make_shared<Collector>());
    ASSERT_TRUE(engine.submit(request, all.back().second).ok());
  }
  while (engine.step())
    for (const std::string& wrong : engine.check_invariants()) ADD_FAILURE() << wrong;
  for (auto& [request, heard] : all) EXPECT_EQ(heard->tokens[0], fake_answer(request));
  EXPECT_GT(backend.runs, 20);
  EXPECT_LE(backend.keys(), 24u);
}

}  // namespace
}  // namespace tessera
