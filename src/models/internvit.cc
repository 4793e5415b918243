#include "models/internvit.h"

#include <cmath>

#include "ops/attention.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/vision_ops.h"

namespace tessera {
namespace {

// ImageNet statistics, the constants of the reference's picture transform.
constexpr std::array<float, 3> kMean = {0.485f, 0.456f, 0.406f};
constexpr std::array<float, 3> kStd = {0.229f, 0.224f, 0.225f};
constexpr float kProjectorEps = 1e-5f;  // torch's LayerNorm default, which the projector uses

// Rows of q, k or v in a fused [3 * hidden, ...] tensor, or of a tensor of their own.
std::vector<MatrixPart> qkv_parts(const WeightLoader& load, const TowerLayerNames& names, Range rows, bool bias) {
  const int64_t hidden = load.config().vision.hidden;
  const std::string suffix = bias ? ".bias" : ".weight";
  const int64_t cols = bias ? 1 : hidden;
  if (!names.qkv.empty())
    return {{names.qkv + suffix,
             3 * hidden,
             cols,
             {rows, {hidden + rows.begin, rows.count}, {2 * hidden + rows.begin, rows.count}},
             {}}};
  return {{names.q + suffix, hidden, cols, {rows}, {}},
          {names.k + suffix, hidden, cols, {rows}, {}},
          {names.v + suffix, hidden, cols, {rows}, {}}};
}

}  // namespace

// ---- Tensors

InternVit::InternVit(WeightLoader& load, Rank rank)
    : config_(load.config()), precision_(load.precision()), layers_(static_cast<size_t>(config_.vision_layers())) {
  const VisionConfig& v = config_.vision;
  // q/k norm spans all heads, so a rank needs them all; so does a number of heads that the ranks don't divide (25).
  attention_ = v.qk_norm ? attention_shard(v.heads, v.heads, Rank{}) : attention_shard(v.heads, v.heads, rank);
  ffn_ = even_shard(v.ffn, rank);
  mlp_split_ = rank.count > 1 && divides(v.ffn, rank);
  residual_ = rank.count == 1 ? precision_.vision_residual : precision_.residual;
  projector_ = even_shard(config_.language.hidden, rank);
  projector_split_ = rank.count > 1 && divides(config_.language.hidden, rank);
  load_embeddings(load);
  for (size_t i = 0; i < layers_.size(); ++i) load_layer(load, static_cast<int64_t>(i), layers_[i]);
  load_projector(load);
}

void InternVit::load_embeddings(WeightLoader& load) {
  const VisionConfig& v = config_.vision;
  const TowerNames names = tower_names(load.names());
  class_token_ = load.vector(names.class_token, v.hidden);
  positions_ = load.positions(names.positions);
  patch_ = load.matrix({{.name = names.patch_weight,
                         .rows = v.hidden,
                         .cols = 3 * v.patch_size * v.patch_size,
                         .stored_shape = {v.hidden, 3, v.patch_size, v.patch_size}}});
  patch_bias_ = load.vector(names.patch_bias, v.hidden);
}

// A norm can be folded into a weight of `rows` rows where the backend divides by deviations, and x is what it multiplies.
bool InternVit::can_fold(int64_t rows) const {
  const VisionConfig& v = config_.vision;
  return precision_.folded_norms && v.norm == NormKind::kLayer && residual_ == precision_.weights &&
         v.hidden % kSumColumns == 0 && rows % 32 == 0 && ffn_.count % 32 == 0;
}

void InternVit::load_attention(WeightLoader& load, const TowerLayerNames& names, Layer& layer) {
  const VisionConfig& v = config_.vision;
  const Range rows = {attention_.heads.begin * v.head_dim(), attention_.heads.count * v.head_dim()};
  const std::vector<MatrixPart> matrix = qkv_parts(load, names, rows, /*bias=*/false);
  const std::vector<MatrixPart> bias = v.qkv_bias ? qkv_parts(load, names, rows, /*bias=*/true) : std::vector<MatrixPart>{};
  if (layer.folded1) {
    FoldedWeight folded = load.folded_matrix(matrix, bias, names.norm1);
    layer.qkv = std::move(folded.weight);
    layer.qkv_bias = std::move(folded.bias);
  } else {
    layer.norm1_weight = load.vector(names.norm1 + ".weight", v.hidden);
    if (v.norm == NormKind::kLayer) layer.norm1_bias = load.vector(names.norm1 + ".bias", v.hidden);
    layer.qkv = load.matrix(matrix);
    if (v.qkv_bias) layer.qkv_bias = load.vector(bias);
  }
  if (v.qk_norm) {
    layer.q_norm = load.vector(names.q_norm + ".weight", v.hidden);
    layer.k_norm = load.vector(names.k_norm + ".weight", v.hidden);
  }
  layer.proj = load.matrix({{.name = names.proj + ".weight", .rows = v.hidden, .cols = v.hidden, .col_range = rows}});
  layer.proj_bias = load.vector(names.proj + ".bias", v.hidden);
}

void InternVit::load_layer(WeightLoader& load, int64_t index, Layer& layer) {
  const VisionConfig& v = config_.vision;
  const TowerLayerNames names = tower_layer_names(load.names(), index);
  layer.folded1 = can_fold(3 * attention_.heads.count * v.head_dim());
  layer.folded2 = can_fold(ffn_.count);
  load_attention(load, names, layer);
  layer.scale1 = load.vector(names.scale1, v.hidden);
  load_fc1(load, names, layer);
  layer.fc2 = load.matrix({{.name = names.fc2 + ".weight", .rows = v.hidden, .cols = v.ffn, .col_range = ffn_}});
  layer.fc2_bias = load.vector(names.fc2 + ".bias", v.hidden);
  layer.scale2 = load.vector(names.scale2, v.hidden);
}

void InternVit::load_fc1(WeightLoader& load, const TowerLayerNames& names, Layer& layer) {
  const VisionConfig& v = config_.vision;
  const std::vector<MatrixPart> matrix = {{.name = names.fc1 + ".weight", .rows = v.ffn, .cols = v.hidden, .row_runs = {ffn_}}};
  const std::vector<MatrixPart> bias = {{.name = names.fc1 + ".bias", .rows = v.ffn, .cols = 1, .row_runs = {ffn_}}};
  if (layer.folded2) {
    FoldedWeight folded = load.folded_matrix(matrix, bias, names.norm2);
    layer.fc1 = std::move(folded.weight);
    layer.fc1_bias = std::move(folded.bias);
    return;
  }
  layer.norm2_weight = load.vector(names.norm2 + ".weight", v.hidden);
  if (v.norm == NormKind::kLayer) layer.norm2_bias = load.vector(names.norm2 + ".bias", v.hidden);
  layer.fc1 = load.matrix(matrix);
  layer.fc1_bias = load.vector(bias);
}

void InternVit::load_projector(WeightLoader& load) {
  const int64_t folded = 4 * config_.vision.hidden;
  const int64_t out = config_.language.hidden;
  const ProjectorNames names = projector_names(load.names());
  projector_norm_weight_ = load.vector(names.norm + ".weight", folded);
  projector_norm_bias_ = load.vector(names.norm + ".bias", folded);
  projector1_ = load.matrix(
      {{.name = names.linear1 + ".weight", .rows = out, .cols = folded, .row_runs = {projector_}}});
  projector1_bias_ =
      load.vector({{.name = names.linear1 + ".bias", .rows = out, .cols = 1, .row_runs = {projector_}}});
  projector2_ =
      load.matrix({{.name = names.linear2 + ".weight", .rows = out, .cols = out, .col_range = projector_}});
  projector2_bias_ = load.vector(names.linear2 + ".bias", out);
}

// ---- Buffers

void InternVit::reserve(int64_t tiles, Allocator& allocator) {
  const VisionConfig& v = config_.vision;
  const DType activation = precision_.activation;
  const int64_t tokens = tiles * v.tokens();
  const int64_t width = attention_.heads.count * v.head_dim();
  x_ = workspace_.place(residual_, tokens, v.hidden);
  sums_ = workspace_.place(DType::kF32, tokens, 2 * v.hidden / kSumColumns);
  normed_ = workspace_.place(activation, tokens, v.hidden);
  const size_t shared = workspace_.mark();  // from here on: one alternative for each stage of a layer
  patches_ = workspace_.place(activation, tiles * v.side() * v.side(), 3 * v.patch_size * v.patch_size);
  workspace_.rewind(shared);
  qkv_ = workspace_.place(activation, tokens, 3 * width);
  attention_out_ = workspace_.place(activation, tokens, width);
  workspace_.rewind(shared);
  mlp_ = workspace_.place(activation, tokens, ffn_.count);
  workspace_.rewind(shared);
  const int64_t rows = tiles * config_.tokens_per_tile();
  shuffled_ = workspace_.place(activation, rows, 4 * v.hidden);
  projected1_ = workspace_.place(activation, rows, projector_.count);
  projected2_ = workspace_.place(activation, rows, config_.language.hidden);
  workspace_.allocate(allocator, MemoryLine::kVisionWorkspace,
                      "vision workspace for " + std::to_string(tiles) + " tiles");
}

int64_t InternVit::max_features() const {
  const int64_t width = attention_.heads.count * config_.vision.head_dim();
  return std::max({3 * width, ffn_.count, 4 * config_.vision.hidden, config_.language.hidden});
}

// ---- Forward

NormArgs InternVit::norm_of(const Vector& weight, const Vector& bias) const {
  return {.kind = config_.vision.norm,
          .weight = weight.tensor(),
          .bias = bias.tensor(),
          .eps = config_.vision.norm_eps,
          .out = workspace_.view(normed_, tiles_ * config_.vision.tokens())};
}

void InternVit::set_input(LinearArgs& product, bool folded) const {
  const int64_t tokens = tiles_ * config_.vision.tokens();
  product.x = workspace_.view(folded ? x_ : normed_, tokens);
  if (!folded) return;
  product.x_sums = workspace_.view(sums_, tokens);
  product.x_eps = config_.vision.norm_eps;
}

void InternVit::set_next(LinearArgs& product, bool folded, const Vector& weight, const Vector& bias) const {
  if (folded)
    product.out_sums = workspace_.view(sums_, tiles_ * config_.vision.tokens());
  else
    product.next_norm = norm_of(weight, bias);
}

void InternVit::begin(const OpContext& ctx, const Tensor& tiles) {
  const VisionConfig& v = config_.vision;
  tiles_ = tiles.rows();
  const Tensor x = workspace_.view(x_, tiles_ * v.tokens());
  PatchEmbedArgs embed = {.tiles = tiles,
                          .mean = kMean,
                          .std = kStd,
                          .patch = static_cast<int>(v.patch_size),
                          .weight = patch_.get(),
                          .bias = patch_bias_.tensor(),
                          .class_token = class_token_.tensor(),
                          .positions = positions_.memory.tensor(DType::kF32, {v.tokens(), v.hidden}),
                          .patches = workspace_.view(patches_, tiles_ * v.side() * v.side()),
                          .out = x};
  const bool folded = !layers_.empty() && layers_[0].folded1;
  if (folded) embed.out_sums = workspace_.view(sums_, tiles_ * v.tokens());
  patch_embed(ctx, embed);
  tap("vit.embeddings", x);
  if (layers_.empty() || folded) return;
  NormArgs first = norm_of(layers_[0].norm1_weight, layers_[0].norm1_bias);
  first.x = x;
  norm(ctx, first);
}

void InternVit::run(const OpContext& ctx, int64_t first, int64_t count) {
  TESSERA_CHECK(first >= 0 && count >= 0 && first + count <= layers(),
                "vision layers " + std::to_string(first) + "+" + std::to_string(count) + " of " +
                    std::to_string(layers()));
  for (int64_t i = first; i < first + count; ++i) run_layer(ctx, i);
}

void InternVit::run_layer(const OpContext& ctx, int64_t index) {
  const VisionConfig& v = config_.vision;
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const int64_t tokens = tiles_ * v.tokens();
  const int64_t width = attention_.heads.count * v.head_dim();
  const Tensor x = workspace_.view(x_, tokens);
  const Tensor qkv = workspace_.view(qkv_, tokens);
  const Tensor attention = workspace_.view(attention_out_, tokens);
  const Tensor mlp = workspace_.view(mlp_, tokens);

  LinearArgs to_qkv = {.weight = layer.qkv.get(), .bias = layer.qkv_bias.tensor(), .out = qkv};
  set_input(to_qkv, layer.folded1);
  linear(ctx, to_qkv);
  if (v.qk_norm) {
    for (const auto& [begin, weight] : {std::pair{int64_t{0}, &layer.q_norm}, std::pair{width, &layer.k_norm}})
      norm(ctx, {.kind = NormKind::kRms,
                 .x = qkv.columns(begin, width),
                 .weight = weight->tensor(),
                 .eps = v.norm_eps,
                 .out = qkv.columns(begin, width)});
  }
  tile_attention(ctx, {.qkv = qkv,
                       .tiles = tiles_,
                       .tokens = v.tokens(),
                       .heads = static_cast<int>(attention_.heads.count),
                       .head_dim = static_cast<int>(v.head_dim()),
                       .scale = 1.0f / std::sqrt(static_cast<float>(v.head_dim())),
                       .out = attention});
  LinearArgs proj = {.x = attention,
                     .weight = layer.proj.get(),
                     .bias = layer.proj_bias.tensor(),
                     .scale = layer.scale1.tensor(),
                     .residual = x,
                     .out = x,
                     .reduce = attention_.split};
  set_next(proj, layer.folded2, layer.norm2_weight, layer.norm2_bias);
  linear(ctx, proj);
  LinearArgs fc1 = {
      .weight = layer.fc1.get(), .bias = layer.fc1_bias.tensor(), .activation = Activation::kGelu, .out = mlp};
  set_input(fc1, layer.folded2);
  linear(ctx, fc1);
  LinearArgs fc2 = {.x = mlp,
                    .weight = layer.fc2.get(),
                    .bias = layer.fc2_bias.tensor(),
                    .scale = layer.scale2.tensor(),
                    .residual = x,
                    .out = x,
                    .reduce = mlp_split_};
  if (index + 1 < layers()) {
    const Layer& following = layers_[static_cast<size_t>(index) + 1];
    set_next(fc2, following.folded1, following.norm1_weight, following.norm1_bias);
  }
  linear(ctx, fc2);
  tap("vit.layers." + std::to_string(index), x);
}

void InternVit::finish(const OpContext& ctx, const Tensor& destination, const Tensor& image_rows) {
  const VisionConfig& v = config_.vision;
  const int64_t rows = tiles_ * config_.tokens_per_tile();
  const Tensor shuffled = workspace_.view(shuffled_, rows);
  const Tensor hidden = workspace_.view(projected1_, rows);
  const Tensor projected = workspace_.view(projected2_, rows);
  PixelShuffleArgs fold = {.x = workspace_.view(x_, tiles_ * v.tokens()),
                           .tiles = tiles_,
                           .side = v.side(),
                           .version = config_.pixel_shuffle_version,
                           .eps = kProjectorEps,
                           .out = shuffled};
  if (tap_) {  // the stage before the projector's norm exists only for tests
    pixel_shuffle(ctx, fold);
    tap("pixel_shuffle", shuffled);
  }
  fold.norm_weight = projector_norm_weight_.tensor();
  fold.norm_bias = projector_norm_bias_.tensor();
  pixel_shuffle(ctx, fold);
  linear(ctx, {.x = shuffled,
               .weight = projector1_.get(),
               .bias = projector1_bias_.tensor(),
               .activation = Activation::kGelu,
               .out = hidden});
  linear(ctx, {.x = hidden,
               .weight = projector2_.get(),
               .bias = projector2_bias_.tensor(),
               .out = projected,
               .reduce = projector_split_});
  tap("projector", projected);
  scatter_rows(ctx, {.x = projected, .indices = destination, .out = image_rows});
}

}  // namespace tessera
