#include "core/thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/check.h"

namespace tessera {
namespace {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// About 20 to 50 microseconds: longer than the gap between two operators of a decode step, short beside a time slice.
constexpr int kSpins = 1000;

/// Spins, then sleeps until `ready()`. The waker changes what ready() reads with seq_cst, then calls wake().
class SleepySpin {
 public:
  template <class Ready>
  void wait(Ready ready) {
    for (int i = 0; i < kSpins; ++i) {
      if (ready()) return;
      pause_cpu();
    }
    std::unique_lock lock(mutex_);
    // The count goes up before ready() is read, and the waker reads it after its change: one of the two sees the other.
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    condition_.wait(lock, ready);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

  void wake() {
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    { std::lock_guard lock(mutex_); }
    condition_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  std::atomic<int> sleepers_{0};
};

}  // namespace

struct ThreadPool::Impl {
  using Body = std::function<void(int64_t, int)>;

  explicit Impl(int count) {
    threads.reserve(static_cast<size_t>(count - 1));
    for (int t = 1; t < count; ++t) threads.emplace_back([this, t] { serve(t); });
  }

  ~Impl() {
    stop.store(true, std::memory_order_seq_cst);
    start.wake();
    for (std::thread& thread : threads) thread.join();
  }

  void serve(int thread) {
    uint64_t seen = 0;
    for (;;) {
      start.wait([&] {
        return generation.load(std::memory_order_seq_cst) != seen || stop.load(std::memory_order_seq_cst);
      });
      if (stop.load(std::memory_order_seq_cst)) return;
      seen = generation.load(std::memory_order_acquire);
      work(thread);
      if (busy.fetch_sub(1, std::memory_order_seq_cst) == 1) done.wake();
    }
  }

  void work(int thread) {
    try {
      for (int64_t item = next.fetch_add(1, std::memory_order_relaxed); item < items;
           item = next.fetch_add(1, std::memory_order_relaxed))
        (*body)(item, thread);
    } catch (...) {
      next.store(items, std::memory_order_relaxed);  // the rest is not begun
      std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  }

  void run(int64_t count, const Body& function) {
    items = count;
    body = &function;
    next.store(0, std::memory_order_relaxed);
    busy.store(static_cast<int>(threads.size()), std::memory_order_relaxed);
    generation.fetch_add(1, std::memory_order_seq_cst);  // publishes the loop
    start.wake();
    work(0);
    done.wait([&] { return busy.load(std::memory_order_seq_cst) == 0; });
    if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
  }

  // The loop that runs; written by the caller between loops, when no thread works.
  int64_t items = 0;
  const Body* body = nullptr;
  std::atomic<int64_t> next{0};
  std::atomic<int> busy{0};
  std::atomic<uint64_t> generation{0};
  std::atomic<bool> stop{false};
  SleepySpin start, done;
  std::mutex failure_mutex;
  std::exception_ptr failure;
  std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int threads) {
  TESSERA_CHECK(threads >= 1, "ThreadPool: " + std::to_string(threads) + " threads; at least 1 is needed");
  impl_ = std::make_unique<Impl>(threads);
}

ThreadPool::~ThreadPool() = default;

int ThreadPool::threads() const { return static_cast<int>(impl_->threads.size()) + 1; }

void ThreadPool::parallel_for(int64_t items, const std::function<void(int64_t item, int thread)>& body) {
  if (items <= 1 || impl_->threads.empty()) {
    for (int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }
  impl_->run(items, body);
}

namespace {

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// Distinct (package, core) pairs among the CPUs of the affinity mask; CPUs without topology count one each.
int physical_cores_allowed() {
  // The mask may be longer than cpu_set_t on machines with more than 1024 CPUs.
  for (int bits = CPU_SETSIZE; bits <= 1 << 18; bits *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(bits));
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(bits));
    CPU_ZERO_S(bytes, set);
    if (sched_getaffinity(0, bytes, set) != 0) {
      CPU_FREE(set);
      continue;
    }
    std::set<std::string> cores;
    for (int cpu = 0; cpu < bits; ++cpu) {
      if (!CPU_ISSET_S(static_cast<size_t>(cpu), bytes, set)) continue;
      const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      const std::string core = read_line(topology + "core_id");
      cores.insert(core.empty() ? "cpu " + std::to_string(cpu)
                                : read_line(topology + "physical_package_id") + ":" + core);
    }
    CPU_FREE(set);
    return static_cast<int>(cores.size());
  }
  return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
}

/// "150000 100000" or "max 100000" of cgroup v2, or the two numbers of v1; 0 when there is no quota.
double quota_of(const std::string& quota, const std::string& period) {
  const double q = std::atof(quota.c_str());
  const double p = std::atof(period.c_str());
  return q > 0 && p > 0 ? q / p : 0;
}

/// The smallest quota on the way from this process's cgroup to the root; 0 when there is none.
double cgroup_cores() {
  double least = 0;
  const auto take = [&](double cores) {
    if (cores > 0 && (least == 0 || cores < least)) least = cores;
  };
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t colon = line.rfind(':');
    if (colon == std::string::npos) continue;
    std::string path = line.substr(colon + 1);
    const bool v2 = line.rfind("0::", 0) == 0;
    if (!v2 && line.find("cpu") == std::string::npos) continue;
    for (;;) {
      if (v2) {
        std::istringstream words(read_line("/sys/fs/cgroup" + path + "/cpu.max"));
        std::string quota, period;
        words >> quota >> period;
        take(quota_of(quota, period));
      } else {
        const std::string folder = "/sys/fs/cgroup/cpu" + path;
        take(quota_of(read_line(folder + "/cpu.cfs_quota_us"), read_line(folder + "/cpu.cfs_period_us")));
      }
      if (path.empty() || path == "/") break;
      path.resize(path.rfind('/'));
    }
  }
  return least;
}

}  // namespace

int available_cores() {
  const int cores = std::max(1, physical_cores_allowed());
  const double quota = cgroup_cores();
  return quota > 0 ? std::clamp(static_cast<int>(quota), 1, cores) : cores;
}

}  // namespace tessera
