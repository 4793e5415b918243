#include "models/language_model.h"

#include <algorithm>

#include "ops/begin_step.h"

namespace tessera {
namespace {

// Logit rows begin at multiples of this many floats: vocabularies are odd, and both vector stores and a GPU's matrix
// products want aligned rows.
constexpr int64_t kVocabAlignment = 64;

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

}  // namespace

// ---- Tensors

LanguageModel::LanguageModel(WeightLoader& load, const ModelShard& shard)
    : config_(load.config().language),
      architecture_(find_architecture(config_.architecture)),
      precision_(load.precision()),
      rank_(load.rank()),
      shard_(decoder_shard(load)) {
  TESSERA_CHECK(architecture_ != nullptr, "architecture " + config_.architecture);
  const int64_t count = shard.layer_count < 0 ? config_.layers - shard.first_layer : shard.layer_count;
  TESSERA_CHECK(shard.first_layer >= 0 && count >= 0 && shard.first_layer + count <= config_.layers,
                "layers " + std::to_string(shard.first_layer) + "+" + std::to_string(count) + " of " +
                    std::to_string(config_.layers));
  first_ = shard.first_layer == 0;
  last_ = shard.first_layer + count == config_.layers;
  if (first_)
    embedding_ = load.matrix({{.name = load.names().language + architecture_->outer.embedding,
                               .rows = config_.vocab,
                               .cols = config_.hidden,
                               .col_range = shard_.hidden}},
                             config_.tied && last_ && rank_.count == 1 ? WeightUse::kTied : WeightUse::kEmbedding);
  layers_.resize(static_cast<size_t>(count));
  for (size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].index = shard.first_layer + static_cast<int64_t>(i);
    architecture_->load_layer(load, layers_[i]);
  }
  if (last_) load_head(load);
}

void LanguageModel::load_head(WeightLoader& load) {
  final_norm_ = load.vector(load.names().language + architecture_->outer.norm, config_.hidden);
  const bool shared = config_.tied && first_ && rank_.count == 1;  // the embedding's weight is the head, too
  if (shared) return;
  const std::string name =
      config_.tied ? load.names().language + architecture_->outer.embedding : load.names().head;
  head_ = load.padded_matrix(name, config_.vocab, config_.hidden, shard_.vocab, WeightUse::kLinear);
}

KvLayout LanguageModel::kv_layout(int block_size) const {
  return {.dtype = precision_.kv,
          .block_size = block_size,
          .kv_heads = static_cast<int>(shard_.attention.kv_heads.count),
          .head_dim = static_cast<int>(config_.head_dim)};
}

int64_t LanguageModel::max_features() const {
  return std::max({shard_.qkv_width(config_), 2 * shard_.ffn.count, config_.hidden, shard_.vocab.count});
}

// ---- Buffers

void LanguageModel::place_mlp(int64_t tokens) {
  if (config_.experts == 0) {
    mlp_ = activations_.place(precision_.activation, tokens, shard_.ffn.count);
    return;
  }
  const int64_t chosen = tokens * config_.experts_per_token;
  router_logits_ = activations_.place(DType::kF32, tokens, config_.experts);
  expert_hidden_ = activations_.place(precision_.activation, chosen, shard_.ffn.count);
  expert_out_ = activations_.place(DType::kF32, chosen, config_.hidden);
}

void LanguageModel::reserve(const ActivationLimits& limits, Allocator& allocator) {
  const DType activation = precision_.activation;
  const int64_t tokens = limits.step_tokens;
  cos_sin_ = activations_.place(DType::kF32, tokens, config_.head_dim);
  x_ = activations_.place(precision_.residual, tokens, config_.hidden);
  normed_ = activations_.place(activation, tokens, config_.hidden);
  squares_ = activations_.place(DType::kF32, kPreparedRows, kPreparedParts);
  const size_t shared = activations_.mark();  // the stages of a layer, one after the other
  qkv_ = activations_.place(activation, tokens, shard_.qkv_width(config_));
  attention_ = activations_.place(activation, tokens, shard_.attention.heads.count * config_.head_dim);
  activations_.rewind(shared);
  place_mlp(tokens);
  activations_.rewind(shared);
  if (rank_.count > 1) embedded_ = activations_.place(precision_.residual, tokens, shard_.hidden.count);
  activations_.allocate(allocator, MemoryLine::kActivations,
                        "activations for steps of " + std::to_string(tokens) + " tokens");

  if (!last_) return;
  const int64_t rows = limits.logit_rows;
  last_rows_ = logits_memory_.place(precision_.residual, rows, config_.hidden);
  const size_t behind_last_layer = logits_memory_.mark();
  last_attention_ = logits_memory_.place(activation, rows, shard_.attention.heads.count * config_.head_dim);
  logits_memory_.rewind(behind_last_layer);
  last_normed_ = logits_memory_.place(activation, rows, config_.hidden);
  if (rank_.count > 1) shard_logits_ = logits_memory_.place(DType::kF32, rows, shard_.vocab.count);
  logits_ = logits_memory_.place(
      DType::kF32, rows,
      rank_.count > 1 ? shard_.vocab.count * rank_.count : round_up(config_.vocab, kVocabAlignment));
  logits_memory_.allocate(allocator, MemoryLine::kLogits, "logits of " + std::to_string(rows) + " rows");
}

// ---- Forward

DecoderStep LanguageModel::views_of(const OpContext& ctx, const StepInput& input) const {
  const int64_t tokens = input.shape.tokens;
  DecoderStep step = {.ctx = ctx,
                      .config = &config_,
                      .shard = &shard_,
                      .input = &input,
                      .cos_sin = activations_.view(cos_sin_, tokens),
                      .x = activations_.view(x_, tokens),
                      .normed = activations_.view(normed_, tokens),
                      .squares = activations_.view(squares_, kPreparedRows),
                      .qkv = activations_.view(qkv_, tokens),
                      .attention = activations_.view(attention_, tokens),
                      .kept_x = logits_memory_.view(last_rows_, input.shape.logit_rows),
                      .kept_attention = logits_memory_.view(last_attention_, input.shape.logit_rows)};
  if (config_.experts == 0) {
    step.mlp = activations_.view(mlp_, tokens);
  } else {
    step.router_logits = activations_.view(router_logits_, tokens);
    step.expert_hidden = activations_.view(expert_hidden_, tokens * config_.experts_per_token);
    step.expert_out = activations_.view(expert_out_, tokens * config_.experts_per_token);
  }
  return step;
}

Tensor LanguageModel::forward(const OpContext& ctx, const StepInput& input, const KvCacheMemory& kv) {
  TESSERA_CHECK(first_ && last_, "forward needs all layers on this rank");
  DecoderStep step = views_of(ctx, input);
  begin(step);
  tap("inputs_embeds", step.x);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const bool last = i + 1 == layers_.size();
    step.kv = kv.layer(static_cast<int64_t>(i));
    step.keep_logit_rows = last && input.shape.logit_rows < input.shape.tokens;
    // Behind the last layer the next norm is the head's, of the rows that need logits.
    const bool rows_of_logits = step.keep_logit_rows || input.shape.logits_in_order;
    step.next_norm = !last ? &layers_[i + 1].input_norm : rows_of_logits ? &final_norm_ : nullptr;
    architecture_->forward_layer(step, layers_[i]);
    tap("llm.layers." + std::to_string(i), step.x);
  }
  return head(step);
}

void LanguageModel::begin(DecoderStep& step) {
  const StepInput& input = *step.input;
  const RopeAnglesArgs angles = {.params = &config_.rope,
                                 .positions = input.positions,
                                 .rope_lengths = input.rope_lengths,
                                 .out = step.cos_sin};
  EmbedArgs args = {.ids = input.token_ids,
                    .sampled_ids = input.sampled_ids,
                    .table = embedding_.get(),
                    .image_rows = input.image_rows,
                    .image_index = input.image_index,
                    .out = step.x};
  if (rank_.count == 1 || shard_.hidden.count == config_.hidden) {
    begin_step(step.ctx, {.embed = args, .angles = angles, .prepares = next_of(step, layers_.empty() ? nullptr : &layers_[0].input_norm)});
    return;
  }
  // Each rank looks up its columns; gathering them costs one exchange a step and saves each rank most of the table.
  args.out = activations_.view(embedded_, input.shape.tokens);
  if (input.image_rows) args.image_rows = input.image_rows.columns(shard_.hidden.begin, shard_.hidden.count);
  embed(step.ctx, args);
  TESSERA_CHECK(step.ctx.comm != nullptr, "several ranks need a communicator");
  step.ctx.comm->all_gather_columns(*step.ctx.stream, args.out, step.x);
  rope_angles(step.ctx, angles);
}

Tensor LanguageModel::head(const DecoderStep& step) {
  const int64_t rows = step.input->shape.logit_rows;
  if (rows == 0) return {};
  // Whether the last layer's product prepared the norm, of rows that need no gathering then.
  const bool prepared = step.prepared.parts > 0 && !tap_;
  const Tensor x = prepared ? step.x : logits_memory_.view(last_rows_, rows);
  const Tensor normed = prepared ? step.normed : logits_memory_.view(last_normed_, rows);
  const Tensor logits = logits_memory_.view(logits_, rows);
  if (!prepared && !step.keep_logit_rows)
    gather_rows(step.ctx, {.x = step.x, .indices = step.input->logit_rows, .out = x});
  const NormArgs final_norm = {.kind = NormKind::kRms,
                               .x = x,
                               .weight = final_norm_.tensor(),
                               .eps = config_.norm_eps,
                               .out = normed};
  if (tap_) {  // the product may norm on the fly
    norm(step.ctx, final_norm);
    tap("llm.norm", normed);
  }
  if (rank_.count == 1) {
    const Tensor out = logits.columns(0, config_.vocab);
    linear(step.ctx, {.x = x,
                      .input_norm = final_norm,
                      .prepared = prepared ? &step.prepared : nullptr,
                      .weight = head_weight(),
                      .out = out,
                      .choices = step.input->choices});
    return out;
  }
  const Tensor part = logits_memory_.view(shard_logits_, rows);
  linear(step.ctx, {.x = x, .input_norm = final_norm, .weight = head_weight(), .out = part});
  step.ctx.comm->all_gather_columns(*step.ctx.stream, part, logits);
  return logits.columns(0, config_.vocab);
}

}  // namespace tessera
