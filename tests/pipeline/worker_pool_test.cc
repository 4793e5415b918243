#include "pipeline/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace tessera {
namespace {

TEST(WorkerPool, RunsJobsAndCountsThem) {
  std::atomic<int> ran{0};
  {
    WorkerPool pool(2, 100, 1 << 20);
    for (int i = 0; i < 50; ++i) EXPECT_TRUE(pool.submit(1, [&](bool stopping) { ran += !stopping; }));
    while (pool.pending() > 0) std::this_thread::yield();
  }
  EXPECT_EQ(ran, 50);
}

TEST(WorkerPool, BudgetBoundsWhatRunsAtOnce) {
  std::atomic<int> running{0}, most{0};
  WorkerPool pool(4, 100, 100);
  for (int i = 0; i < 20; ++i)
    pool.submit(60, [&](bool) {  // two of these pass the budget of 100: one at a time
      most = std::max(most.load(), ++running);
      std::this_thread::yield();
      --running;
    });
  while (pool.pending() > 0) std::this_thread::yield();
  EXPECT_EQ(most, 1);
}

TEST(WorkerPool, AJobLargerThanTheBudgetRunsAlone) {
  WorkerPool pool(2, 10, 100);
  std::promise<void> ran;
  pool.submit(1000, [&](bool) { ran.set_value(); });
  ran.get_future().wait();
}

TEST(WorkerPool, RefusesWhatTheQueueCannotHold) {
  std::promise<void> gate;
  auto open = gate.get_future().share();
  std::atomic<bool> started{false};
  WorkerPool pool(1, 2, 100);
  pool.submit(1, [&, open](bool) {
    started = true;
    open.wait();
  });
  while (!started) std::this_thread::yield();
  EXPECT_TRUE(pool.submit(1, [](bool) {}));
  EXPECT_TRUE(pool.submit(1, [](bool) {}));
  EXPECT_FALSE(pool.submit(1, [](bool) {}));
  gate.set_value();
}

TEST(WorkerPool, StoppingTellsQueuedJobs) {
  std::promise<void> gate;
  auto open = gate.get_future().share();
  std::atomic<bool> started{false};
  std::atomic<int> told{0};
  WorkerPool pool(1, 10, 100);
  pool.submit(1, [&, open](bool) {
    started = true;
    open.wait();
  });
  while (!started) std::this_thread::yield();
  for (int i = 0; i < 3; ++i) pool.submit(1, [&](bool stopping) { told += stopping; });
  std::thread stopper([&] { pool.stop(); });
  while (pool.submit(0, [](bool) {})) std::this_thread::yield();  // refused once the stop is on
  gate.set_value();
  stopper.join();
  EXPECT_GE(told, 3);
}

}  // namespace
}  // namespace tessera
