#pragma once

#include <optional>

#include "core/json.h"
#include "core/result.h"
#include "runtime/token_engine.h"
#include "tessera/request.h"

namespace tessera {

/// Checks every bound of a request that does not need the model: sampling options, n, logprobs, stop strings, number
/// of pictures, UTF-8. One line that names the field, its value and the range.
Status check_request(const Request& request);

/// Fills the sampling fields of `out` from the request, with generation_config.json's values (`generation`, may be
/// absent) where it says do_sample, and greedy otherwise: product.md, "Without sampling options decoding is greedy".
/// A request without a seed gets `fallback_seed`.
void resolve_sampling(const Request& request, const std::optional<Json>& generation, uint64_t fallback_seed,
                      TokenRequest& out);

}  // namespace tessera
