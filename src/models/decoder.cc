#include "models/decoder.h"

#include <cmath>

#include "ops/decoder_layer.h"
#include "ops/embedding.h"
#include "ops/moe.h"

namespace tessera {

DecoderShard DecoderShard::of(const LanguageConfig& config, Rank rank) {
  return {.attention = attention_shard(config.heads, config.kv_heads, rank),
          .mlp_split = rank.count > 1 && divides(config.ffn, rank),
          .ffn = even_shard(config.ffn, rank),
          .vocab = padded_shard(config.vocab, rank),
          .hidden = even_shard(config.hidden, rank)};
}

// ---- Forward

namespace {

NormArgs rms_of_x(const DecoderStep& step, const Vector& weight) {
  return {.kind = NormKind::kRms,
          .x = step.x,
          .weight = weight.tensor(),
          .eps = step.config->norm_eps,
          .out = step.normed};
}

}  // namespace

PreparedNorm* next_of(DecoderStep& step, const Vector* weight) {
  step.prepared = {};
  if (!weight) return nullptr;
  step.prepared = {.weight = weight->tensor(), .rows = step.normed, .squares = step.squares};
  return &step.prepared;
}

namespace {

/// Leaves of the step, whose attention has been made, the rows that need logits.
void keep_logit_rows(DecoderStep& step) {
  const int64_t rows = step.input->shape.logit_rows;
  if (rows > 0) {
    gather_rows(step.ctx, {.x = step.attention, .indices = step.input->logit_rows, .out = step.kept_attention});
    gather_rows(step.ctx, {.x = step.x, .indices = step.input->logit_rows, .out = step.kept_x});
  }
  step.attention = step.kept_attention;
  step.x = step.kept_x;
  step.normed = step.normed.slice(0, rows);
  if (step.config->experts == 0) {
    step.mlp = step.mlp.slice(0, rows);
    return;
  }
  const int64_t chosen = rows * step.config->experts_per_token;
  step.router_logits = step.router_logits.slice(0, rows);
  step.expert_hidden = step.expert_hidden.slice(0, chosen);
  step.expert_out = step.expert_out.slice(0, chosen);
}

ProjectQkvArgs projection(const DecoderStep& step, const DecoderLayer& layer) {
  const LanguageConfig& config = *step.config;
  return {.product = {.x = step.x,
                      .input_norm = rms_of_x(step, layer.input_norm),
                      .weight = layer.qkv.get(),
                      .bias = layer.qkv_bias.tensor(),
                      .out = step.qkv},
          .cache = {.qkv = step.qkv,
                    .q_norm = layer.q_norm.tensor(),
                    .k_norm = layer.k_norm.tensor(),
                    .norm_eps = config.norm_eps,
                    .cos_sin = step.cos_sin,
                    .slots = step.input->slots,
                    .heads = static_cast<int>(step.shard->attention.heads.count),
                    .kv_heads = static_cast<int>(step.shard->attention.kv_heads.count),
                    .head_dim = static_cast<int>(config.head_dim),
                    .kv = step.kv}};
}

PagedAttentionArgs attention(const DecoderStep& step) {
  const int64_t heads = step.shard->attention.heads.count, head_dim = step.config->head_dim;
  return {.shape = step.input->shape,
          .q = step.qkv.columns(0, heads * head_dim),
          .query_offsets = step.input->query_offsets,
          .kv_lengths = step.input->kv_lengths,
          .block_tables = step.input->block_tables,
          .heads = static_cast<int>(heads),
          .kv_heads = static_cast<int>(step.shard->attention.kv_heads.count),
          .head_dim = static_cast<int>(head_dim),
          .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
          .kv = step.kv,
          .out = step.attention};
}

LinearArgs output(const DecoderStep& step, const DecoderLayer& layer) {
  return {.x = step.attention, .weight = layer.o.get(), .residual = step.x, .out = step.x, .reduce = step.shard->attention.split};
}

LinearArgs gate_up(const DecoderStep& step, const DecoderLayer& layer) {
  return {.x = step.x,
          .input_norm = rms_of_x(step, layer.post_attention_norm),
          .weight = layer.gate_up.get(),
          .activation = Activation::kSiluMul,
          .out = step.mlp};
}

LinearArgs down(const DecoderStep& step, const DecoderLayer& layer) {
  return {.x = step.mlp, .weight = layer.down.get(), .residual = step.x, .out = step.x, .reduce = step.shard->mlp_split};
}

}  // namespace

void attention_block(DecoderStep& step, const DecoderLayer& layer) {
  ProjectQkvArgs project = projection(step, layer);
  project.product.prepared = &step.prepared;
  project_qkv(step.ctx, project);
  if (step.keep_logit_rows && step.input->shape.logit_rows == 0) return keep_logit_rows(step);
  paged_attention(step.ctx, attention(step));
  if (step.keep_logit_rows) keep_logit_rows(step);
  LinearArgs o = output(step, layer);
  o.prepares = next_of(step, step.config->experts == 0 ? &layer.post_attention_norm : nullptr);
  linear(step.ctx, o);
}

void swiglu_block(DecoderStep& step, const DecoderLayer& layer) {
  if (step.x.rows() == 0) return;
  LinearArgs first = gate_up(step, layer), second = down(step, layer);
  first.prepared = &step.prepared;
  linear(step.ctx, first);
  second.prepares = next_of(step, step.next_norm);
  linear(step.ctx, second);
}

void dense_layer(DecoderStep& step, const DecoderLayer& layer) {
  // The step of a single row is the one that a backend may make otherwise.
  if (step.x.rows() == 1 && !step.keep_logit_rows && step.prepared.parts == 0 &&
      decoder_layer(step.ctx, {projection(step, layer), attention(step), output(step, layer), gate_up(step, layer), down(step, layer)}))
    return;
  attention_block(step, layer);
  swiglu_block(step, layer);
}

void mixture_block(DecoderStep& step, const DecoderLayer& layer) {
  if (step.x.rows() == 0) return;
  norm(step.ctx, rms_of_x(step, layer.post_attention_norm));
  moe(step.ctx, {.x = step.normed,
                 .router = layer.router.get(),
                 .gate_up = layer.expert_gate_up.get(),
                 .down = layer.expert_down.get(),
                 .top_k = static_cast<int>(step.config->experts_per_token),
                 .normalise_top_k = step.config->normalise_experts,
                 .router_logits = step.router_logits,
                 .expert_hidden = step.expert_hidden,
                 .expert_out = step.expert_out,
                 .residual = step.x,
                 .out = step.x,
                 .reduce = step.shard->mlp_split});
}

// ---- Loading

DecoderShard decoder_shard(const WeightLoader& load) { return DecoderShard::of(load.config().language, load.rank()); }

Range head_rows(Range heads, int64_t head_dim) { return {heads.begin * head_dim, heads.count * head_dim}; }

void load_norms(WeightLoader& load, DecoderLayer& layer, const char* before_attention, const char* before_mlp) {
  const std::string prefix = language_layer_prefix(load.names(), layer.index);
  const int64_t hidden = load.config().language.hidden;
  layer.input_norm = load.vector(prefix + before_attention, hidden);
  layer.post_attention_norm = load.vector(prefix + before_mlp, hidden);
}

namespace {

std::vector<MatrixPart> split_qkv(const WeightLoader& load, int64_t layer, const char* kind, int64_t cols) {
  const LanguageConfig& c = load.config().language;
  const AttentionShard shard = decoder_shard(load).attention;
  const std::string prefix = language_layer_prefix(load.names(), layer) + "self_attn.";
  const Range q = head_rows(shard.heads, c.head_dim);
  const Range kv = head_rows(shard.kv_heads, c.head_dim);
  return {{prefix + "q_proj." + kind, c.heads * c.head_dim, cols, {q}, {}},
          {prefix + "k_proj." + kind, c.kv_heads * c.head_dim, cols, {kv}, {}},
          {prefix + "v_proj." + kind, c.kv_heads * c.head_dim, cols, {kv}, {}}};
}

}  // namespace

void load_split_attention(WeightLoader& load, DecoderLayer& layer) {
  layer.qkv = load.matrix(split_qkv(load, layer.index, "weight", load.config().language.hidden));
  load_output(load, layer, "self_attn.o_proj.weight");
}

void load_split_bias(WeightLoader& load, DecoderLayer& layer) {
  layer.qkv_bias = load.vector(split_qkv(load, layer.index, "bias", /*cols=*/1));
}

void load_head_norms(WeightLoader& load, DecoderLayer& layer) {
  const std::string prefix = language_layer_prefix(load.names(), layer.index) + "self_attn.";
  const int64_t head_dim = load.config().language.head_dim;
  layer.q_norm = load.vector(prefix + "q_norm.weight", head_dim);
  layer.k_norm = load.vector(prefix + "k_norm.weight", head_dim);
}

void load_output(WeightLoader& load, DecoderLayer& layer, const char* name) {
  const LanguageConfig& c = load.config().language;
  layer.o = load.matrix({{.name = language_layer_prefix(load.names(), layer.index) + name,
                          .rows = c.hidden,
                          .cols = c.heads * c.head_dim,
                          .col_range = head_rows(decoder_shard(load).attention.heads, c.head_dim)}});
}

void load_split_mlp(WeightLoader& load, DecoderLayer& layer, const char* gate, const char* up, const char* down) {
  const LanguageConfig& c = load.config().language;
  const Range ffn = decoder_shard(load).ffn;
  const std::string prefix = language_layer_prefix(load.names(), layer.index);
  layer.gate_up = load.matrix({{prefix + gate, c.ffn, c.hidden, {ffn}, {}}, {prefix + up, c.ffn, c.hidden, {ffn}, {}}},
                              WeightUse::kGated);
  layer.down = load.matrix({{.name = prefix + down, .rows = c.hidden, .cols = c.ffn, .col_range = ffn}});
}

}  // namespace tessera
