#pragma once

#include <vector>

#include "ops/context.h"

namespace tessera {

enum class RopeKind : uint8_t {
  kPlain,
  kDynamicNtk,  ///< base grows with the length once it passes max_position
  kLongRope,    ///< Phi-3 "su": long factors past original_max_position, cos and sin scaled at all lengths
};

/// Rotary embedding of a model. The angle of dimension pair i (d and d + head_dim / 2) at a position depends on the
/// position and on the token's rope length: the whole prompt's length for every token of the prompt (whatever the
/// chunking), position + 1 for each token generated after it. So a recomputed key is the key that it was.
struct RopeParams {
  RopeKind kind = RopeKind::kPlain;
  int head_dim = 0;
  double base = 10000;
  double factor = 1;                  ///< dynamic NTK
  int64_t max_position = 0;           ///< max_position_embeddings: dynamic NTK switches past it
  int64_t original_max_position = 0;  ///< long rope switches past it
  std::vector<float> short_factors;   ///< [head_dim / 2]
  std::vector<float> long_factors;    ///< [head_dim / 2]
  float attention_scale = 1;          ///< multiplies cos and sin (long rope)
};

/// The inverse frequencies, f32 [head_dim / 2], of a token with this rope length. Computed as the reference does (in
/// float32 where it does). Lengths with equal results share KV blocks: see rope_class.
std::vector<float> rope_inverse_frequencies(const RopeParams& params, int64_t rope_length);

/// Equal numbers mean equal frequencies: 0 for the plain ones (dynamic: any length <= max_position), else a number that
/// identifies the variant. Prefix sharing puts it into the hash.
int64_t rope_class(const RopeParams& params, int64_t rope_length);

/// out[t] = cos (head_dim / 2 values) then sin (head_dim / 2 values) of token t's angles, once per step for all layers.
struct RopeAnglesArgs {
  const RopeParams* params = nullptr;
  Tensor positions;     ///< i32 [tokens]
  Tensor rope_lengths;  ///< i32 [tokens]
  Tensor out;           ///< f32 [tokens, head_dim]
};

void rope_angles(const OpContext& ctx, const RopeAnglesArgs& args);
/// The checks of rope_angles, for the operator that it is part of.
void check(const RopeAnglesArgs& args);

}  // namespace tessera
