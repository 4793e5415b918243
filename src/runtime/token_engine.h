#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/result.h"
#include "ops/backend.h"
#include "runtime/engine_memory.h"
#include "runtime/token_request.h"
#include "tessera/engine.h"

namespace tessera {

/// How an engine runs; what it holds is EngineShape.
struct TokenEngineOptions {
  int64_t valid_ids = 0;           ///< ids >= this are never chosen; 0: the model's whole vocabulary
  int64_t max_queue = 1024;        ///< requests waiting; more are refused
  std::optional<double> max_decode_wait_s;  ///< while answers run, vision and prefill are sliced to take about this of a
                                            ///< step; default 0.025, on a CPU 0.25
  bool prefix_cache = true;
  bool own_thread = true;          ///< false: the owner calls step() (tests)
  std::function<double()> clock;   ///< monotonic seconds; empty: the system's
  std::vector<std::pair<std::string, int64_t>> memory_planned;  ///< lines of the plan, shown by stats()
  /// Called once, on the engine's thread, when the device failed for good: all requests have ended with this reason, new
  /// ones are refused with it.
  std::function<void(const Status&)> on_lost;
};

/// Answers many token requests at once over one model. One engine thread steps; submit, cancel, stats come from any
/// thread and never wait for a step. Listeners are called on the engine's thread, and only there. Destruction cancels
/// what is left (listeners hear of it) and joins the thread. The contract is docs/engine.md.
class TokenEngine {
 public:
  /// `backend` outlives the engine.
  TokenEngine(Backend& backend, EngineMemory memory, TokenEngineOptions options);
  ~TokenEngine();
  TokenEngine(const TokenEngine&) = delete;
  TokenEngine& operator=(const TokenEngine&) = delete;

  /// Queues a request and returns its id (never 0). A failure means that the listener is never called: kDoesNotFit
  /// with the numbers for what can never fit, kUnavailable when the queue is full or the engine stops, kInvalidInput for
  /// values out of range.
  Result<RequestId> submit(TokenRequest request, std::shared_ptr<TokenListener> listener) {
    return submit(std::move(request), std::move(listener), false);
  }
  /// In two parts, for who must know that a request is taken before its listener may be called: its checks and a place in the
  /// queue (failures as of submit()), then the same request, which uses the place if it succeeds; else give_back().
  Status reserve(const TokenRequest& request);
  void give_back();
  Result<RequestId> submit_reserved(TokenRequest request, std::shared_ptr<TokenListener> listener) {
    return submit(std::move(request), std::move(listener), true);
  }

  /// Ends a request within one step: on_finish with kCancelled for each answer that is not finished yet.
  void cancel(RequestId id);

  /// Refuses new requests and returns when the running ones have ended, or false when that took longer.
  bool drain(double timeout_s);
  /// Refuses new requests, cancels all, returns when the engine thread has ended. Idempotent.
  void stop();

  /// Fields of the engine's own; the pipeline adds preparing, preprocess_s and tile_cache_hits.
  EngineStats stats() const;
  const EngineShape& shape() const;
  /// Tiles of the largest request that admission allows.
  int64_t max_tiles_per_request() const;

  /// One step, or nothing; true when something was done. Only with own_thread = false, from one thread.
  bool step();
  /// What is wrong with the engine's bookkeeping, one line each; empty when all is well. Only where step() is allowed.
  std::vector<std::string> check_invariants() const;

 private:
  Result<RequestId> submit(TokenRequest request, std::shared_ptr<TokenListener> listener, bool reserved);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera
