#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tessera {

/// Threads that prepare requests (decode, resize, tokenize) before the engine sees them, with back-pressure: a job states
/// what it holds and what it will need, and in all they stay within the budget, but that the first in line always gets
/// on: a job larger than the whole budget works alone. Jobs with pictures have threads of their own, and one more is kept
/// for text, which never waits behind a picture. Within each kind higher priority goes first, then the oldest.
/// Thread-safe. Destruction stops it.
class WorkerPool {
 public:
  enum class Kind : uint8_t { kText, kPictures };

  struct Cost {
    int64_t held_bytes = 0;     ///< from submit() to the job's end
    int64_t working_bytes = 0;  ///< while it runs
  };

  /// A job; `stopping` is true when the pool is being stopped and the job should only clean up.
  using Job = std::function<void(bool stopping)>;

  /// `threads` for jobs with pictures, one for the others; at most `max_jobs` wait.
  WorkerPool(int threads, int64_t max_jobs, int64_t budget_bytes);
  ~WorkerPool();

  /// Queues a job, or returns false when max_jobs are waiting or what all jobs hold would pass the budget.
  bool submit(Kind kind, int priority, Cost cost, Job job);
  /// Runs every queued job with stopping = true, waits for running ones, ends the threads.
  void stop();
  /// Jobs queued or running.
  int64_t pending() const;

 private:
  struct Entry {
    int priority;
    Cost cost;
    Job job;
  };
  // Jobs of one kind, and how many of them run.
  struct Lane {
    std::deque<Entry> queue;
    int64_t running = 0;
  };
  void work(Lane& lane);
  bool may_run(const Lane& lane) const;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Lane text_, pictures_;
  std::vector<std::thread> threads_;
  int64_t max_jobs_;
  int64_t budget_;
  int64_t held_ = 0;     ///< by jobs queued and running
  int64_t working_ = 0;  ///< by running jobs
  bool stopping_ = false;
};

}  // namespace tessera
