#pragma once

#include "models/config.h"
#include "ops/backend.h"

namespace tessera::cli {

/// The arithmetic and the traffic that a workload can't avoid: what the floors are made of.
struct Work {
  double flops = 0;  ///< of products and attention
  double bytes = 0;  ///< read from memory: weights once, the KV cache
};

/// `tiles` tiles through tower and projector; weights are read once.
Work vision_work(const ModelConfig& config, int64_t tiles, int64_t element_bytes);
/// One sequence's first `tokens` tokens, logits of the last.
Work prefill_work(const ModelConfig& config, int64_t tokens, int64_t element_bytes);
/// One step of `batch` sequences, each with `context` keys.
Work decode_work(const ModelConfig& config, int64_t batch, int64_t context, int64_t element_bytes);

/// Seconds that a device of this probed speed needs at least: the longer of arithmetic and traffic.
double floor_seconds(const Work& work, const DeviceSpeed& speed);

}  // namespace tessera::cli
