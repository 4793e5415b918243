#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/check.h"

namespace tessera {
namespace {

TEST(ThreadPool, CallsEveryItemOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t items : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(items));
      pool.parallel_for(items, [&](int64_t item, int thread) {
        ASSERT_TRUE(thread >= 0 && thread < threads);
        calls[static_cast<size_t>(item)].fetch_add(1);
      });
      for (const auto& count : calls) ASSERT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, MakesTheLoopsWritesVisible) {
  ThreadPool pool(3);
  std::vector<int> values(64);
  for (int round = 0; round < 300; ++round) {
    pool.parallel_for(64, [&](int64_t i, int) { values[static_cast<size_t>(i)] += 1; });
    if (round % 100 == 50) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the team falls asleep
    for (int v : values) ASSERT_EQ(v, round + 1);
  }
}

TEST(ThreadPool, RethrowsAndGoesOn) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(pool.parallel_for(100, [](int64_t i, int) { if (i == 37) throw std::runtime_error("no"); }), std::runtime_error);
    std::atomic<int> count{0};
    pool.parallel_for(10, [&](int64_t, int) { count.fetch_add(1); });
    EXPECT_EQ(count.load(), 10);
  }
}

TEST(ThreadPool, RefusesNoThreads) { EXPECT_THROW(ThreadPool(0), CheckFailure); }

TEST(AvailableCores, IsAtLeastOneAndAtMostTheMachines) {
  EXPECT_GE(available_cores(), 1);
  EXPECT_LE(available_cores(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
}

}  // namespace
}  // namespace tessera
