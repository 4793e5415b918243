#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/result.h"
#include "runtime/engine_state.h"

namespace tessera {

/// The door between the threads that submit and the one that steps: arrivals and cancels wait here for the next step.
/// Thread-safe; take() and ended() are the engine thread's.
class Inbox {
 public:
  explicit Inbox(int64_t max_queue) : max_queue_(max_queue) {}

  /// Takes one of max_queue places for an add() to come; kUnavailable when there is none or the engine stops.
  Status reserve();
  /// A place that was reserved was not used.
  void give_back();
  /// Gives the request its id. kUnavailable when max_queue wait (not if it has a place) or the engine stops; only a success
  /// uses its place.
  Result<RequestId> add(std::shared_ptr<RequestState> request, bool reserved);
  void cancel(RequestId id);
  /// Refuses arrivals; true when none is left within the time.
  bool drain(double timeout_s);
  /// Refuses arrivals from now on, for this reason.
  void close(const Status& why);
  /// Refuses arrivals and ends wait_for_work(). False when it was stopped before.
  bool stop();

  /// Returns at once when busy or something arrived, else sleeps until then; false when stopped.
  bool wait_for_work(bool busy);
  struct Messages {
    std::vector<std::shared_ptr<RequestState>> arrivals;
    std::vector<RequestId> cancels;
  };
  /// Moves what arrived into `messages` (its storage is reused).
  void take(Messages& messages);
  /// `requests` waiting requests became running (negative: went back).
  void admitted(int64_t requests);
  /// Requests have ended.
  void ended(int64_t requests);
  int64_t waiting() const;

 private:
  Status check(bool has_place) const;

  const int64_t max_queue_;
  mutable std::mutex mutex_;
  std::condition_variable arrived_, emptied_;
  Messages messages_;
  RequestId last_id_ = 0;
  int64_t waiting_ = 0;  ///< not admitted yet, and places reserved
  int64_t active_ = 0;   ///< not ended yet
  bool closed_ = false, stopped_ = false;
  Status why_closed_;    ///< where it is not the usual reason
};

}  // namespace tessera
