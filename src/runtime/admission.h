#pragma once

#include "models/config.h"
#include "runtime/engine_shape.h"
#include "runtime/token_request.h"
#include "tessera/status.h"

namespace tessera {

/// Refuses what is malformed (kInvalidInput) or could never be served by an engine of this shape (kDoesNotFit), with the
/// numbers and the setting that would change it. What passes can be served alone, whatever else waits. Pure.
Status check_token_request(const TokenRequest& request, const EngineShape& shape, const ModelConfig& config);

}  // namespace tessera
