#include "pipeline/worker_pool.h"

#include <algorithm>
#include <utility>

namespace tessera {

WorkerPool::WorkerPool(int threads, int64_t max_jobs, int64_t budget_bytes)
    : max_jobs_(max_jobs), budget_(budget_bytes) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(pictures_); });
  threads_.emplace_back([this] { work(text_); });
}

WorkerPool::~WorkerPool() { stop(); }

bool WorkerPool::submit(Kind kind, int priority, Cost cost, Job job) {
  {
    std::lock_guard lock(mutex_);
    const auto waiting = static_cast<int64_t>(text_.queue.size() + pictures_.queue.size());
    if (stopping_ || waiting >= max_jobs_ || (held_ > 0 && held_ + cost.held_bytes > budget_)) return false;
    auto& queue = (kind == Kind::kText ? text_ : pictures_).queue;
    const auto behind = std::find_if(queue.begin(), queue.end(), [&](const Entry& e) { return e.priority < priority; });
    queue.insert(behind, {priority, cost, std::move(job)});
    held_ += cost.held_bytes;
  }
  changed_.notify_all();
  return true;
}

int64_t WorkerPool::pending() const {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(text_.queue.size() + pictures_.queue.size()) + text_.running + pictures_.running;
}

bool WorkerPool::may_run(const Lane& lane) const {
  if (lane.queue.empty()) return false;
  return lane.running == 0 || held_ + working_ + lane.queue.front().cost.working_bytes <= budget_;
}

void WorkerPool::work(Lane& lane) {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || may_run(lane); });
    if (lane.queue.empty()) return;
    Entry entry = std::move(lane.queue.front());
    lane.queue.pop_front();
    const bool stopping = stopping_;
    working_ += entry.cost.working_bytes;
    ++lane.running;
    lock.unlock();
    entry.job(stopping);
    entry.job = nullptr;  // what the job holds is freed before its cost is
    lock.lock();
    working_ -= entry.cost.working_bytes;
    held_ -= entry.cost.held_bytes;
    --lane.running;
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
