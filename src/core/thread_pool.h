#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace tessera {

/// A fixed team of threads that run one parallel loop at a time. The caller takes part as thread 0. Between loops
/// the others spin briefly, then sleep. Thread rule: parallel_for from one thread at a time; no nesting.
class ThreadPool {
 public:
  /// `threads` >= 1, the caller included.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  /// Calls body(item, thread) once for every item in [0, items); items are handed out dynamically, so a result must
  /// not depend on which thread gets which. Returns when all are done. The first exception of a body is rethrown.
  void parallel_for(int64_t items, const std::function<void(int64_t item, int thread)>& body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Physical cores that this process's affinity mask and cgroup quota allow; at least 1.
int available_cores();

}  // namespace tessera
