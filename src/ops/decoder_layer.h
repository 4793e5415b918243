#pragma once

#include "ops/attention.h"

namespace tessera {

/// A decoder layer of attention and a gated MLP, whole: what some backends make of a few kernels where its five operators
/// would wait for each other. Products hand on no prepared norms.
struct DecoderLayerArgs {
  ProjectQkvArgs project;
  PagedAttentionArgs attention;  ///< of project's queries
  LinearArgs o;                  ///< of attention's rows; residual and out are project's x
  LinearArgs gate_up, down;      ///< likewise of that x
};

/// False, and nothing done, where the backend has no kernels for this layer and step: then the operators are called one by
/// one. Of the tensors between them nothing is promised afterwards, but x and the cache are what they would make of them.
bool decoder_layer(const OpContext& ctx, const DecoderLayerArgs& args);

}  // namespace tessera
