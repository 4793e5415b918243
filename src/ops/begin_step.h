#pragma once

#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/rope.h"

namespace tessera {

/// What a language step begins with: its input rows, their angles, and the norm of them that the first product reads. These are
/// short and wait for no one another's results, so that a backend may make them one kernel.
struct BeginStepArgs {
  EmbedArgs embed;
  RopeAnglesArgs angles;             ///< of the same tokens
  PreparedNorm* prepares = nullptr;  ///< of embed.out, as LinearArgs::prepares; or null
};

void begin_step(const OpContext& ctx, const BeginStepArgs& args);

}  // namespace tessera
