#include "pipeline/worker_pool.h"

#include <utility>

namespace tessera {

WorkerPool::WorkerPool(int threads, int64_t max_jobs, int64_t budget_bytes)
    : max_jobs_(max_jobs), budget_(budget_bytes) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

WorkerPool::~WorkerPool() { stop(); }

bool WorkerPool::submit(int64_t cost_bytes, Job job) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_ || static_cast<int64_t>(queue_.size()) >= max_jobs_) return false;
    queue_.push_back({cost_bytes, std::move(job)});
  }
  changed_.notify_one();
  return true;
}

int64_t WorkerPool::pending() const {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(queue_.size()) + running_;
}

void WorkerPool::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] {
      return stopping_ || (!queue_.empty() && (running_ == 0 || running_cost_ + queue_.front().cost <= budget_));
    });
    if (queue_.empty()) return;
    Entry entry = std::move(queue_.front());
    queue_.pop_front();
    const bool stopping = stopping_;
    running_cost_ += entry.cost;
    ++running_;
    lock.unlock();
    entry.job(stopping);
    entry.job = nullptr;  // what the job holds is freed before its cost is
    lock.lock();
    running_cost_ -= entry.cost;
    --running_;
    changed_.notify_all();
  }
}

void WorkerPool::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();
}

}  // namespace tessera
