#pragma once

#include <functional>
#include <vector>

#include "models/model.h"
#include "runtime/token_request.h"

namespace tessera::testing {

/// A model whose answers are a hash of everything that an engine must hand it right: token ids, positions, rope
/// parameters and picture rows, written into the KV blocks as a real model's keys are, and read back through the block
/// tables. A wrong slot, table, position, length or row changes the tokens that come out. Tiles are 8 x 8 pixels and
/// take 4 tokens. Runs on any backend whose memory is the host's.
class FakeModel : public Model {
 public:
  struct Hooks {
    std::function<void(const StepInput&)> forward;  ///< called first in each forward; may throw
    std::function<void(int64_t first, int64_t count)> vision;
  };

  explicit FakeModel(const RopeParams& rope = {}, int64_t vocab = 97);

  static constexpr int64_t kTileBytes = 3 * 8 * 8;
  static constexpr int64_t kTokensPerTile = 4;

  Hooks& hooks() { return hooks_; }
  /// An idle model computes nothing: its logits stay what they were. For measuring what is around it.
  void set_idle(bool idle) { idle_ = idle; }
  int64_t tiles_seen() const { return tiles_seen_; }
  int64_t tokens_seen() const { return tokens_seen_; }

  const ModelConfig& config() const override { return config_; }
  const Precision& precision() const override { return precision_; }
  void reserve(const ActivationLimits& limits, Allocator& allocator) override;
  KvLayout kv_layout(int block_size) const override;
  int64_t layers() const override { return config_.language.layers; }
  int64_t vision_layers() const override { return config_.vision.layers; }
  void vision_begin(const OpContext& ctx, const Tensor& tiles) override;
  void vision_run(const OpContext& ctx, int64_t first, int64_t count) override;
  void vision_finish(const OpContext& ctx, const Tensor& destination, const Tensor& image_rows) override;
  Tensor forward(const OpContext& ctx, const StepInput& input, const KvCacheMemory& kv) override;
  void set_tap(Tap) override {}

 protected:
  /// Where a forward leaves its logits.
  Tensor logits(int64_t rows) const;

 private:
  void write_keys(const StepInput& input, const KvCacheMemory& kv) const;
  uint64_t read_keys(const StepInput& input, const KvCacheMemory& kv, int64_t sequence, int64_t count) const;

  ModelConfig config_;
  Precision precision_{DType::kF32, DType::kF32, DType::kF32, DType::kF32};
  ActivationLimits limits_;
  Hooks hooks_;
  Buffer logits_;
  std::vector<uint64_t> pass_;  ///< one hash a tile
  int64_t pass_layers_ = 0;
  bool idle_ = false;
  int64_t tiles_seen_ = 0, tokens_seen_ = 0;
};

/// The greedy answer of a FakeModel with these rope parameters, worked out without an engine.
std::vector<int32_t> fake_answer(const TokenRequest& request, const RopeParams& rope = {}, int64_t vocab = 97);

/// Tiles in memory of their own.
class OwnTiles : public PictureTiles {
 public:
  OwnTiles(std::vector<uint8_t> pixels, size_t tile_bytes);

 private:
  std::vector<uint8_t> pixels_;
};

/// A picture of `tiles` tiles drawn from a seed, to stand at token `first`.
PromptImage fake_picture(uint64_t seed, int64_t tiles, int64_t first);

}  // namespace tessera::testing
