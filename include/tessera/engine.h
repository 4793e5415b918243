#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tessera/request.h"

namespace tessera {

/// Receives what becomes of one request. Calls for one request never overlap and come in this order: on_prompt once,
/// on_delta any number of times, on_finish once for each of the n answers. A request that ends before its prompt is
/// ready gets only one on_finish (index 0, kError or kCancelled). Called on the engine's or a worker's thread: return quickly, hand the
/// work on. An exception thrown here ends this request alone.
class Listener {
 public:
  virtual ~Listener() = default;
  virtual void on_prompt(const PromptInfo&) {}
  virtual void on_delta(const Delta& delta) = 0;
  virtual void on_finish(const Finish& finish) = 0;
};

/// Names a submitted request for cancel(). 0 is none.
using RequestId = uint64_t;

/// What clients may know about the model that is served.
struct ModelInfo {
  std::string name;
  int64_t session_len = 0;
  int64_t tokens_per_tile = 0;
  int64_t image_size = 0;
  int64_t max_dynamic_patch = 0;
  int64_t min_dynamic_patch = 1;
  bool use_thumbnail = true;
  int64_t max_tiles_per_request = 0;
  int64_t kv_cache_tokens = 0;
};

/// Gauges and counters at one moment; counters only grow.
struct EngineStats {
  int64_t preparing = 0;  ///< in the worker pool: decoding, resizing, tokenizing
  int64_t waiting = 0;
  int64_t running = 0;
  int64_t kv_blocks_total = 0;
  int64_t kv_blocks_used = 0;   ///< held by sequences
  int64_t kv_blocks_cached = 0; ///< free but holding a reusable prefix
  uint64_t requests_finished = 0;
  uint64_t requests_failed = 0;
  uint64_t prompt_tokens = 0;
  uint64_t generated_tokens = 0;
  uint64_t prefix_cache_queries_tokens = 0;
  uint64_t prefix_cache_hit_tokens = 0;
  uint64_t picture_cache_queries = 0;  ///< embeddings of a picture looked up
  uint64_t picture_cache_hits = 0;
  uint64_t tile_cache_hits = 0;        ///< decoding and resizing avoided
  uint64_t tiles_encoded = 0;
  uint64_t vision_passes = 0;
  uint64_t preemptions = 0;
  uint64_t steps = 0;
  double preprocess_s = 0, encode_s = 0, prefill_s = 0, decode_s = 0;  ///< busy seconds, summed
  std::vector<std::pair<std::string, int64_t>> memory_planned;         ///< plan lines, bytes
  std::vector<std::pair<std::string, int64_t>> memory_used;
  std::vector<std::pair<std::string, int64_t>> device_peak_bytes;      ///< by device; on the CPU resident memory
};

/// A chat model that answers many requests at once. Thread-safe. Destruction cancels what is left and waits for it.
class Engine {
 public:
  virtual ~Engine() = default;

  /// Queues a request; never blocks on computation. A failure here (queue full: kUnavailable; out of bounds:
  /// kInvalidInput) means that the listener is never called. Later failures arrive as on_finish.
  virtual std::pair<RequestId, Status> submit(Request request, std::shared_ptr<Listener> listener) = 0;

  /// Ends a request within one step; its listener gets kCancelled. Unknown ids are ignored.
  virtual void cancel(RequestId id) = 0;

  virtual ModelInfo model() const = 0;
  virtual EngineStats stats() const = 0;

  /// Token ids of plain text, or (messages given) of the rendered prompt with pictures counted as the model sees them.
  virtual std::pair<std::vector<int32_t>, Status> tokenize(const Request& request) = 0;
  virtual std::pair<std::string, Status> detokenize(const std::vector<int32_t>& ids) = 0;
  /// The piece of one id, for showing logprobs; may be part of a character.
  virtual std::string piece(int32_t id) = 0;
};

}  // namespace tessera
