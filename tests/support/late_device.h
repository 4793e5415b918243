#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>

#include "ops/embedding.h"
#include "ops/sample.h"
#include "tests/support/fake_model.h"
#include "tests/support/wrapped_backend.h"

namespace tessera::testing {

/// Work of a device that starts nothing before somebody waits for it: the latest that a real one could be.
class LateStream final : public Stream {
 public:
  explicit LateStream(Backend& inner) : inner(inner) {}

  void push(std::function<void()> work) { queue_.push_back(std::move(work)); }
  /// The number of pieces of work handed over so far.
  uint64_t handed_over() const { return done_ + queue_.size(); }
  void run_until(uint64_t count) {
    while (done_ < count) {
      const std::function<void()> work = std::move(queue_.front());
      queue_.pop_front();
      ++done_;
      work();
    }
  }

  Backend& inner;

 private:
  std::deque<std::function<void()>> queue_;
  uint64_t done_ = 0;
};

inline LateStream& late_stream(Stream& stream) { return static_cast<LateStream&>(stream); }

/// The CPU backend as an asynchronous device that replays decode steps. Host memory that is changed or let go too early is
/// read as it is then. Of the operators it has those that an engine calls itself.
class LateBackend final : public WrappedBackend {
 public:
  explicit LateBackend(std::unique_ptr<Backend> inner) : WrappedBackend(std::move(inner)), stream_(*inner_) {
    table_.sample = [](Stream& s, const SampleArgs& args) {
      LateStream& stream = late_stream(s);
      stream.push([&stream, args] { stream.inner.kernels().sample(stream.inner.stream(), args); });
    };
    table_.copy_blocks = [](Stream& s, const CopyBlocksArgs& args) {
      LateStream& stream = late_stream(s);
      stream.push([&stream, args] { stream.inner.kernels().copy_blocks(stream.inner.stream(), args); });
    };
  }

  const KernelTable& kernels() const override { return table_; }
  Stream& stream() override { return stream_; }
  bool captures() const override { return true; }
  bool asynchronous() const override { return true; }
  void upload(const void* host, const Tensor& device) override {
    stream_.push([this, host, device] { inner_->upload(host, device); });
  }
  void download(const Tensor& device, void* host) override {
    stream_.push([this, host, device] { inner_->download(device, host); });
  }
  void download_in_turn(const Tensor& device, void* host, size_t pitch, const Tensor& turn) override {
    stream_.push([this, device, host, pitch, turn] { inner_->download_in_turn(device, host, pitch, turn); });
  }
  void fill_zero(const Tensor& device) override {
    stream_.push([this, device] { inner_->fill_zero(device); });
  }
  void synchronize() override { stream_.run_until(stream_.handed_over()); }
  void mark(int which) override { marks_[static_cast<size_t>(which)] = stream_.handed_over(); }
  double seconds_between(int, int to) override {
    stream_.run_until(marks_[static_cast<size_t>(to)]);
    return 1e-3;
  }

 private:
  LateStream stream_;
  KernelTable table_;
  std::array<uint64_t, kMarks> marks_{};
};

/// The opposite: an asynchronous device whose work is done when it is handed over. What is downloaded too early for the host
/// overwrites what that has not read.
class EarlyBackend final : public WrappedBackend {
 public:
  using WrappedBackend::WrappedBackend;
  bool captures() const override { return true; }
  bool asynchronous() const override { return true; }
};

/// A FakeModel for a LateBackend: its hooks are called when the device gets there, `launching` when a forward is handed over.
class LateModel final : public FakeModel {
 public:
  using FakeModel::FakeModel;
  std::function<void()> launching;

  void vision_begin(const OpContext& ctx, const Tensor& tiles) override {
    late_stream(*ctx.stream).push([this, ctx, tiles] { FakeModel::vision_begin(ctx, tiles); });
  }
  void vision_run(const OpContext& ctx, int64_t first, int64_t count) override {
    late_stream(*ctx.stream).push([this, ctx, first, count] { FakeModel::vision_run(ctx, first, count); });
  }
  void vision_finish(const OpContext& ctx, const Tensor& destination, const Tensor& image_rows) override {
    late_stream(*ctx.stream).push([this, ctx, destination, image_rows] { FakeModel::vision_finish(ctx, destination, image_rows); });
  }
  Tensor forward(const OpContext& ctx, const StepInput& input, const KvCacheMemory& kv) override {
    if (launching) launching();
    late_stream(*ctx.stream).push([this, ctx, input, kv] { FakeModel::forward(ctx, input, kv); });
    return logits(input.shape.logit_rows);
  }
};

}  // namespace tessera::testing
