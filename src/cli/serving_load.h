#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/result.h"
#include "tessera/request.h"

namespace tessera::cli {

/// A request mix for `bench --serving`.
struct ServingMix {
  int64_t requests = 256;
  std::string pictures = "seven";  ///< seven: 1344 x 896 or 896 x 1344 (7 tiles); mixed: 1 to 13 tiles; none
  int64_t text_tokens = 64;        ///< about this many, in words of one token
  int64_t new_tokens = 128;
  double shared_prefix = 0;        ///< share of requests that begin with one common text
  uint64_t seed = 1;
};

/// The requests of a mix: pictures are smooth random colours with noise, encoded as JPEG, each its own; texts are random
/// words. Deterministic for a seed. `made` hears how many there are so far.
Result<std::vector<Request>> make_serving_load(const ServingMix& mix, const std::function<void(int64_t)>& made = {});

/// Arrival times in seconds from the start: all 0 for a closed loop (rate 0), else a Poisson process of this rate.
std::vector<double> arrival_times(int64_t requests, double rate, uint64_t seed);

}  // namespace tessera::cli
