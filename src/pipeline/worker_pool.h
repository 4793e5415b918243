#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tessera {

/// Threads that prepare requests (decode, resize, tokenize) before the engine sees them, with back-pressure: a job
/// states its cost in bytes, and what is queued or running never costs more than the budget (a single job larger than
/// the whole budget runs alone). Thread-safe. Destruction stops it.

class WorkerPool {
 public:
  /// A job; `stopping` is true when the pool is being stopped and the job should only clean up.
  using Job = std::function<void(bool stopping)>;

  WorkerPool(int threads, int64_t max_jobs, int64_t budget_bytes);
  ~WorkerPool();

  /// Queues a job, or returns false when max_jobs are waiting.
  bool submit(int64_t cost_bytes, Job job);
  /// Runs every queued job with stopping = true, waits for running ones, ends the threads.
  void stop();
  /// Jobs queued or running.
  int64_t pending() const;

 private:
  struct Entry {
    int64_t cost;
    Job job;
  };
  void work();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> queue_;
  std::vector<std::thread> threads_;
  int64_t max_jobs_;
  int64_t budget_;
  int64_t running_cost_ = 0;
  int64_t running_ = 0;
  bool stopping_ = false;
};

}  // namespace tessera
