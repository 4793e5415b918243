#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/result.h"
#include "models/config.h"
#include "ops/attention.h"
#include "ops/backend.h"
#include "ops/rope.h"

namespace tessera {

/// The inputs of one language step: a flat ragged batch. All tensors lie in device memory at fixed addresses and are as
/// long as shape says.
struct StepInput {
  StepShape shape;
  Tensor token_ids;      ///< i32 [tokens]; -1 - row: what sampled_ids has in that row
  Tensor sampled_ids;    ///< i32: of the step before; absent where no id is negative
  Tensor positions;      ///< i32 [tokens], from 0 in each sequence
  Tensor rope_lengths;   ///< i32 [tokens], see ops/rope.h
  Tensor slots;          ///< i32 [tokens]
  Tensor image_index;    ///< i32 [tokens]: row of image_rows or -1
  Tensor query_offsets;  ///< i32 [sequences + 1]
  Tensor kv_lengths;     ///< i32 [sequences]
  Tensor block_tables;   ///< i32 [sequences, max_blocks]
  Tensor logit_rows;     ///< i32 [logit_rows]: rows of the batch whose logits are wanted
  Tensor image_rows;     ///< [rows, hidden], activation dtype: the embedding cache
  FoundChoices* choices = nullptr;  ///< where nothing but choices is asked of the logits; or null
};

/// The KV memory of all of this rank's layers. Layer l's blocks start at base + l * layer_stride.
struct KvCacheMemory {
  KvLayout layout;
  void* base = nullptr;
  size_t layer_stride = 0;  ///< bytes
  int64_t blocks = 0;       ///< per layer

  KvView layer(int64_t index) const {
    return {layout, static_cast<char*>(base) + static_cast<size_t>(index) * layer_stride, blocks};
  }
};

/// Which part of a model a rank holds.
struct ModelShard {
  Rank rank;             ///< tensor-parallel rank
  int64_t first_layer = 0;
  int64_t layer_count = -1;  ///< -1: all
  bool vision = true;        ///< holds the vision tower and projector
  Rank vision_rank;          ///< its share of them: `rank` to split the tower, one of one to hold it whole
};

/// The largest vision pass and language step that the activation buffers and the kernels' scratch are made for.
struct ActivationLimits {
  int64_t vision_tiles = 0;    ///< tiles in one pass
  int64_t step_tokens = 0;
  int64_t step_sequences = 0;
  int64_t logit_rows = 0;
  int64_t max_kv = 0;        ///< longest sequence, tokens
};

/// A loaded InternVL model on one rank: vision tower, projector, language model. Weights are packed by the backend;
/// activations live in buffers made once by reserve(). The same code path runs with a CountingAllocator to plan.
/// Thread rule: one thread at a time. Nothing is allocated on the device after reserve().
class Model {
 public:
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const Precision& precision() const = 0;

  /// Allocates activations, vision workspace and logits for these limits (lines kVisionWorkspace, kActivations,
  /// kLogits), and calls the backend's reserve_workspace with the model's shapes. Call once, before the first forward.
  virtual void reserve(const ActivationLimits& limits, Allocator& allocator) = 0;

  /// The KV form of this rank, for block_size tokens a block.
  virtual KvLayout kv_layout(int block_size) const = 0;
  virtual int64_t layers() const = 0;

  /// A vision pass in three parts, so that an engine can put decode steps between layers.
  /// begin: tiles u8 [tiles, 3, side, side] on the device, tiles <= limits. layers: runs tower layers [first, first +
  /// count). finish: pixel shuffle and projector; row r of the pass goes to image_rows[destination[r]].
  virtual int64_t vision_layers() const = 0;
  virtual void vision_begin(const OpContext& ctx, const Tensor& tiles) = 0;
  virtual void vision_run(const OpContext& ctx, int64_t first, int64_t count) = 0;
  virtual void vision_finish(const OpContext& ctx, const Tensor& destination, const Tensor& image_rows) = 0;

  /// One language step. Returns the logits, f32 [shape.logit_rows, vocab], in the model's own buffer, valid until the
  /// next step. Its rows are padded (row_stride >= vocab): many vocabularies are odd. Without logit rows it is empty.
  virtual Tensor forward(const OpContext& ctx, const StepInput& input, const KvCacheMemory& kv) = 0;

  /// A tap for tests: called with the name and the tensor after each stage ("vit.layers.3", "projector",
  /// "inputs_embeds", "llm.layers.0", "llm.norm"). Null in production.
  using Tap = std::function<void(const std::string& name, const Tensor& tensor)>;
  virtual void set_tap(Tap tap) = 0;
};

class Checkpoint;

/// What loading shows and obeys.
struct LoadOptions {
  DType compute = DType::kBF16;
  ModelShard shard;
  std::function<void(size_t bytes_done, size_t bytes_total)> progress;  ///< may be empty
};

/// Loads the shard's weights through the backend into the allocator (lines kLanguageWeights, kVisionWeights). With a
/// counting allocator only sizes are accounted: `checkpoint` may then hold only a configuration (catalogue shape), no
/// tensors. Errors: a tensor is absent, of a wrong shape or dtype (named, with both shapes).
Result<std::unique_ptr<Model>> load_model(const Checkpoint& checkpoint, Backend& backend, Allocator& allocator,
                                          const LoadOptions& options);

}  // namespace tessera
