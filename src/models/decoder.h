#pragma once

#include <vector>

#include "models/model.h"
#include "models/weight_loader.h"
#include "ops/linear.h"

namespace tessera {

/// What all supported language models are made of: a pre-norm decoder layer of attention and a gated MLP. The pieces
/// are here; which tensors fill them and in which order they run is said by each architecture's own file.

/// One layer's weights, of one rank. What an architecture does not have stays empty.
struct DecoderLayer {
  int64_t index = 0;
  Vector input_norm;            ///< before attention
  WeightPtr qkv;                ///< rows q | k | v
  Vector qkv_bias;
  Vector q_norm, k_norm;        ///< [head_dim], per head
  WeightPtr o;
  Vector post_attention_norm;   ///< before the MLP
  WeightPtr gate_up;            ///< rows gate | up
  WeightPtr down;
  WeightPtr router;             ///< mixtures: [experts, hidden]
  WeightPtr expert_gate_up, expert_down;
};

/// How the language model is cut for one rank.
struct DecoderShard {
  AttentionShard attention;
  bool mlp_split = false;  ///< the down projection is row-parallel
  Range ffn;               ///< of one expert for mixtures
  Range vocab;             ///< rows of the head, the last rank's padded
  Range hidden;            ///< columns of the embedding
  static DecoderShard of(const LanguageConfig& config, Rank rank);
  int64_t qkv_width(const LanguageConfig& config) const {
    return (attention.heads.count + 2 * attention.kv_heads.count) * config.head_dim;
  }
};

/// Everything a layer's forward works on. Views of buffers made once; rows are this step's tokens.
struct DecoderStep {
  OpContext ctx;
  const LanguageConfig* config = nullptr;
  const DecoderShard* shard = nullptr;
  const StepInput* input = nullptr;
  KvView kv;          ///< of the layer that runs
  Tensor cos_sin;     ///< f32 [tokens, head_dim]
  Tensor x;           ///< [tokens, hidden], residual stream
  Tensor normed;      ///< [tokens, hidden]: room for the norm of x that a product reads
  Tensor squares;     ///< room for the squares of a prepared norm
  PreparedNorm prepared;              ///< what the product that ended x last left of the norm behind it
  const Vector* next_norm = nullptr;  ///< the input norm of the layer behind the one that runs, or null
  Tensor qkv;         ///< [tokens, qkv_width]
  Tensor attention;   ///< [tokens, heads * head_dim]
  Tensor mlp;         ///< [tokens, ffn]
  Tensor router_logits, expert_hidden, expert_out;  ///< mixtures: see MoeArgs
  bool keep_logit_rows = false;  ///< of the last layer: behind its attention only the rows that need logits are read
  Tensor kept_x, kept_attention;  ///< room for them, [logit_rows, ...]
};

/// For the operator that ends x: the norm of x that the next product reads, or null where it reads none.
PreparedNorm* next_of(DecoderStep& step, const Vector* weight);

/// x += o(attention(rope(qkv(input_norm(x))))). Keys and values of all rows go to the cache; with
/// keep_logit_rows x and what follows have only the rows of input->logit_rows then, maybe none.
void attention_block(DecoderStep& step, const DecoderLayer& layer);

/// x += down(silu(gate(n)) * up(n)) with n = post_attention_norm(x).
void swiglu_block(DecoderStep& step, const DecoderLayer& layer);

/// Both.
void dense_layer(DecoderStep& step, const DecoderLayer& layer);

/// x += the mixture of the experts that the router chooses for post_attention_norm(x).
void mixture_block(DecoderStep& step, const DecoderLayer& layer);

// ---- Loading, in the names that most architectures share (`self_attn.q_proj`, `mlp.gate_proj`, ...)

DecoderShard decoder_shard(const WeightLoader& load);
/// Rows of `heads` heads of head_dim.
Range head_rows(Range heads, int64_t head_dim);

void load_norms(WeightLoader& load, DecoderLayer& layer, const char* before_attention, const char* before_mlp);
/// self_attn.{q,k,v}_proj packed, self_attn.o_proj.
void load_split_attention(WeightLoader& load, DecoderLayer& layer);
/// The biases of q, k, v.
void load_split_bias(WeightLoader& load, DecoderLayer& layer);
/// self_attn.{q,k}_norm.
void load_head_norms(WeightLoader& load, DecoderLayer& layer);
/// The output projection: row-parallel where attention is split.
void load_output(WeightLoader& load, DecoderLayer& layer, const char* name);
/// mlp.{gate,up,down}_proj in any naming.
void load_split_mlp(WeightLoader& load, DecoderLayer& layer, const char* gate, const char* up, const char* down);

}  // namespace tessera
