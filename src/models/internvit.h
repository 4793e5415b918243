#pragma once

#include <vector>

#include "models/model.h"
#include "models/weight_loader.h"
#include "models/workspace.h"
#include "ops/linear.h"

namespace tessera {

/// InternViT and the projector behind it. Both towers are this code: the 300M (LayerNorm, qkv bias) and the 6B (RMS
/// norm, q/k norm over the full width, no qkv bias). Pre-norm blocks with layer scale, no final norm; a pixel shuffle
/// folds 2 x 2 patches; the projector (LayerNorm, linear, GELU, linear) gives rows of the language model's width.
/// Thread rule: one thread at a time.
class InternVit {
 public:
  /// Loads `config.vision_layers()` layers: what select_layer needs.
  /// `rank`: this rank's share of the tower; one of one where every rank, or only the first, holds it whole.
  InternVit(WeightLoader& load, Rank rank);

  /// Buffers for passes of up to `tiles` tiles (line kVisionWorkspace).
  void reserve(int64_t tiles, Allocator& allocator);

  /// The three parts of a pass: see Model.
  void begin(const OpContext& ctx, const Tensor& tiles);
  void run(const OpContext& ctx, int64_t first, int64_t count);
  void finish(const OpContext& ctx, const Tensor& destination, const Tensor& image_rows);

  int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
  /// Widest row of any product's output, for the kernels' scratch.
  int64_t max_features() const;
  void set_tap(Model::Tap tap) { tap_ = std::move(tap); }

 private:
  struct Layer {
    bool folded1 = false, folded2 = false;  ///< the weight behind the norm holds it: qkv, fc1
    Vector norm1_weight, norm1_bias;
    WeightPtr qkv;  ///< rows q | k | v
    Vector qkv_bias, q_norm, k_norm;
    WeightPtr proj;
    Vector proj_bias, scale1;
    Vector norm2_weight, norm2_bias;
    WeightPtr fc1, fc2;
    Vector fc1_bias, fc2_bias, scale2;
  };

  void load_embeddings(WeightLoader& load);
  void load_layer(WeightLoader& load, int64_t index, Layer& layer);
  bool can_fold(int64_t rows) const;
  void load_attention(WeightLoader& load, const TowerLayerNames& names, Layer& layer);
  void load_fc1(WeightLoader& load, const TowerLayerNames& names, Layer& layer);
  void load_projector(WeightLoader& load);
  void run_layer(const OpContext& ctx, int64_t index);
  NormArgs norm_of(const Vector& weight, const Vector& bias) const;
  /// x of the product that a norm stands before, and what the product ahead of the norm does for it.
  void set_input(LinearArgs& product, bool folded) const;
  void set_next(LinearArgs& product, bool folded, const Vector& weight, const Vector& bias) const;
  void tap(const std::string& name, const Tensor& tensor) const {
    if (tap_) tap_(name, tensor);
  }

  ModelConfig config_;
  Precision precision_;
  AttentionShard attention_;
  Range ffn_;
  DType residual_ = DType::kF32;
  bool mlp_split_ = false;
  Range projector_;  ///< rows of the first projector layer
  bool projector_split_ = false;

  WeightPtr patch_;
  Vector patch_bias_, class_token_, positions_;
  std::vector<Layer> layers_;
  Vector projector_norm_weight_, projector_norm_bias_;
  WeightPtr projector1_, projector2_;
  Vector projector1_bias_, projector2_bias_;

  Workspace workspace_;
  Workspace::Slot x_, sums_, normed_, patches_, qkv_, attention_out_, mlp_, shuffled_, projected1_, projected2_;
  int64_t tiles_ = 0;  ///< of the pass that runs
  Model::Tap tap_;
};

}  // namespace tessera
