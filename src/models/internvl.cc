#include <algorithm>
#include <memory>

#include "models/checkpoint.h"
#include "models/internvit.h"
#include "models/language_model.h"
#include "models/model.h"
#include "models/weight_loader.h"

namespace tessera {
namespace {

/// Pictures through the tower and the projector, rows of both kinds through the language model.
class InternVl final : public Model {
 public:
  InternVl(WeightLoader& load, Backend& backend, const ModelShard& shard)
      : config_(load.config()), precision_(load.precision()), backend_(backend) {
    if (shard.vision) {
      load.set_line(MemoryLine::kVisionWeights);
      vision_ = std::make_unique<InternVit>(load, shard.vision_rank);
    }
    load.set_line(MemoryLine::kLanguageWeights);
    language_ = std::make_unique<LanguageModel>(load, shard);
  }

  const ModelConfig& config() const override { return config_; }
  const Precision& precision() const override { return precision_; }
  KvLayout kv_layout(int block_size) const override { return language_->kv_layout(block_size); }
  int64_t layers() const override { return language_->layers(); }

  void reserve(const ActivationLimits& limits, Allocator& allocator) override {
    if (vision_ && limits.vision_tiles > 0) vision_->reserve(limits.vision_tiles, allocator);
    language_->reserve(limits, allocator);
    backend_.reserve_workspace(workspace_shape(limits), allocator);
  }

  int64_t vision_layers() const override { return vision_ ? vision_->layers() : 0; }
  void vision_begin(const OpContext& ctx, const Tensor& tiles) override { tower().begin(ctx, tiles); }
  void vision_run(const OpContext& ctx, int64_t first, int64_t count) override { tower().run(ctx, first, count); }
  void vision_finish(const OpContext& ctx, const Tensor& destination, const Tensor& image_rows) override {
    tower().finish(ctx, destination, image_rows);
  }

  Tensor forward(const OpContext& ctx, const StepInput& input, const KvCacheMemory& kv) override {
    return language_->forward(ctx, input, kv);
  }

  void set_tap(Tap tap) override {
    if (vision_) vision_->set_tap(tap);
    language_->set_tap(std::move(tap));
  }

 private:
  InternVit& tower() {
    TESSERA_CHECK(vision_ != nullptr, "this rank holds no vision tower");
    return *vision_;
  }

  WorkspaceShape workspace_shape(const ActivationLimits& limits) const {
    return {.max_tokens = limits.step_tokens,
            .max_sequences = limits.step_sequences,
            .max_kv = limits.max_kv,
            .vision_tokens = vision_ ? limits.vision_tiles * config_.vision.tokens() : 0,
            .max_features = std::max(language_->max_features(), vision_ ? vision_->max_features() : 0),
            .vocab = config_.language.vocab,
            .heads = language_->local_heads(),
            .head_dim = config_.language.head_dim};
  }

  ModelConfig config_;
  Precision precision_;
  Backend& backend_;
  std::unique_ptr<InternVit> vision_;
  std::unique_ptr<LanguageModel> language_;
};

bool is_block_tensor(const std::string& name) {
  return (name.find(".layers.") != std::string::npos || name.find(".layer.") != std::string::npos) &&
         name.find("rotary_emb") == std::string::npos;
}

// Tower layers behind the one that select_layer reads are in the files, and rightly not loaded.
bool is_unused_tower_layer(const std::string& name, const TensorNames& names, const ModelConfig& config) {
  for (int64_t layer = config.vision_layers(); layer < config.vision.layers; ++layer) {
    const std::string scale = tower_layer_names(names, layer).scale1;
    const std::string prefix = scale.substr(0, scale.rfind('.') + 1);
    if (name.rfind(prefix, 0) == 0) return true;
  }
  return false;
}

// A tensor inside a block that nothing used (a bias, a layer more than config.json counts) would change the answer of
// the reference: better refused than left out.
void refuse_unused(const Checkpoint& checkpoint, const WeightLoader& load) {
  std::vector<std::string> used = load.used();
  std::sort(used.begin(), used.end());
  for (const std::string& name : checkpoint.tensors().names()) {
    if (!is_block_tensor(name) || std::binary_search(used.begin(), used.end(), name)) continue;
    if (is_unused_tower_layer(name, load.names(), load.config())) continue;
    throw CheckpointError(invalid_input(checkpoint.name() + ": tensor " + name + " has no place in a " +
                                        load.config().language.architecture +
                                        " of the shape that config.json gives; config and weights do not belong "
                                        "together"));
  }
}

std::unique_ptr<Model> build(const Checkpoint& checkpoint, const TensorNames& names, Backend& backend,
                             Allocator& allocator, const LoadOptions& options) {
  WeightLoader load(checkpoint, names, backend, allocator, options);
  auto model = std::make_unique<InternVl>(load, backend, options.shard);
  const bool whole = options.shard.vision && options.shard.first_layer == 0 &&
                     model->layers() == checkpoint.config().language.layers;
  if (whole) refuse_unused(checkpoint, load);
  return model;
}

}  // namespace

Result<std::unique_ptr<Model>> load_model(const Checkpoint& checkpoint, Backend& backend, Allocator& allocator,
                                          const LoadOptions& options) {
  try {
    auto found = find_tensor_names(checkpoint.tensors(), checkpoint.config());
    if (!found.ok()) return found.status().with_context(checkpoint.name());
    LoadOptions counted = options;
    counted.progress = nullptr;
    if (allocator.counting()) return build(checkpoint, *found, backend, allocator, counted);
    // The same code, counting: finds what is missing before a byte is read, and says how much there is to come.
    CountingAllocator counting;
    const std::unique_ptr<Model> planned = build(checkpoint, *found, backend, counting, counted);
    if (options.progress)
      counted.progress = [&, total = counting.used()](size_t done, size_t) { options.progress(done, total); };
    return build(checkpoint, *found, backend, allocator, counted);
  } catch (const CheckpointError& error) {
    return invalid_input(error.what());
  } catch (const OutOfMemory& error) {
    return does_not_fit("cannot load " + checkpoint.name() + ": " + error.what());
  }
}

}  // namespace tessera
