#pragma once

#include <vector>

#include "models/architecture.h"
#include "models/decoder.h"
#include "models/workspace.h"

namespace tessera {

/// The language model around its decoder layers: embedding, rope angles, layers, final norm of the rows whose logits
/// are wanted, head. Which layers, and which part of each, is the shard's. Thread rule: one thread at a time.
class LanguageModel {
 public:
  LanguageModel(WeightLoader& load, const ModelShard& shard);

  /// Buffers for steps up to `limits` (lines kActivations and kLogits).
  void reserve(const ActivationLimits& limits, Allocator& allocator);
  /// See Model::forward. Requires: all layers on this rank.
  Tensor forward(const OpContext& ctx, const StepInput& input, const KvCacheMemory& kv);

  int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
  KvLayout kv_layout(int block_size) const;
  int64_t local_heads() const { return shard_.attention.heads.count; }
  int64_t max_features() const;
  void set_tap(Model::Tap tap) { tap_ = std::move(tap); }

 private:
  void load_head(WeightLoader& load);
  void place_mlp(int64_t tokens);
  DecoderStep views_of(const OpContext& ctx, const StepInput& input) const;
  void begin(DecoderStep& step);
  Tensor head(const DecoderStep& step);
  const Weight* head_weight() const { return head_ ? head_.get() : embedding_.get(); }
  void tap(const std::string& name, const Tensor& tensor) const {
    if (tap_) tap_(name, tensor);
  }

  LanguageConfig config_;
  const LanguageArchitecture* architecture_;
  Precision precision_;
  Rank rank_;
  DecoderShard shard_;
  bool first_ = true;  ///< holds the embedding
  bool last_ = true;   ///< holds final norm and head

  WeightPtr embedding_;  ///< [vocab, hidden]; of several ranks each holds a range of columns
  std::vector<DecoderLayer> layers_;
  Vector final_norm_;
  WeightPtr head_;  ///< [vocab, hidden], a range of rows a rank; empty where the embedding serves

  Workspace activations_, logits_memory_;
  Workspace::Slot cos_sin_, x_, normed_, squares_, qkv_, attention_, mlp_, embedded_;
  Workspace::Slot router_logits_, expert_hidden_, expert_out_;
  Workspace::Slot last_rows_, last_attention_, last_normed_, shard_logits_, logits_;
  Model::Tap tap_;
};

}  // namespace tessera
