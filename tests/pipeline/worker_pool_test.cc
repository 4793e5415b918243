#include "pipeline/worker_pool.h"

#include <chrono>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace tessera {
namespace {

using Kind = WorkerPool::Kind;

// A job that says when it runs and waits to be let go.
class Gate {
 public:
  void operator()(bool) {
    started_ = true;
    open_.wait();
  }
  void wait_started() const {
    while (!started_) std::this_thread::yield();
  }
  void open() { promise_.set_value(); }

 private:
  std::promise<void> promise_;
  std::shared_future<void> open_ = promise_.get_future().share();
  std::atomic<bool> started_{false};
};

TEST(WorkerPool, RunsJobsAndCountsThem) {
  std::atomic<int> ran{0};
  {
    WorkerPool pool(2, 100, 1 << 20);
    for (int i = 0; i < 50; ++i)
      EXPECT_TRUE(pool.submit(i % 2 ? Kind::kText : Kind::kPictures, 0, {1, 1}, [&](bool stopping) { ran += !stopping; }));
    while (pool.pending() > 0) std::this_thread::yield();
  }
  EXPECT_EQ(ran, 50);
}

TEST(WorkerPool, BudgetBoundsWhatRunsAtOnce) {
  std::atomic<int> running{0}, most{0};
  WorkerPool pool(4, 100, 100);
  for (int i = 0; i < 20; ++i)
    EXPECT_TRUE(pool.submit(Kind::kPictures, 0, {1, 45}, [&](bool) {  // with what the others hold, two pass the budget
      most = std::max(most.load(), ++running);
      std::this_thread::yield();
      --running;
    }));
  while (pool.pending() > 0) std::this_thread::yield();
  EXPECT_LE(most, 2);
}

TEST(WorkerPool, WhatWaitsIsHeldWithinTheBudget) {
  Gate gate;
  WorkerPool pool(1, 100, 100);
  EXPECT_TRUE(pool.submit(Kind::kPictures, 0, {60, 0}, std::ref(gate)));
  EXPECT_TRUE(pool.submit(Kind::kPictures, 0, {40, 0}, [](bool) {}));
  EXPECT_FALSE(pool.submit(Kind::kPictures, 0, {1, 0}, [](bool) {})) << "101 bytes of 100";
  gate.open();
  while (pool.pending() > 0) std::this_thread::yield();
  EXPECT_TRUE(pool.submit(Kind::kPictures, 0, {1000, 0}, [](bool) {})) << "alone, whatever its size";
}

TEST(WorkerPool, AJobLargerThanTheBudgetRunsAlone) {
  WorkerPool pool(2, 10, 100);
  std::promise<void> ran;
  pool.submit(Kind::kPictures, 0, {10, 1000}, [&](bool) { ran.set_value(); });
  ran.get_future().wait();
}

TEST(WorkerPool, TextDoesNotWaitBehindPictures) {
  Gate gate;
  WorkerPool pool(1, 10, 100);
  pool.submit(Kind::kPictures, 0, {90, 1000}, std::ref(gate));
  gate.wait_started();
  pool.submit(Kind::kPictures, 0, {1, 1}, [](bool) {});
  std::promise<void> ran;
  pool.submit(Kind::kText, 0, {1, 0}, [&](bool) { ran.set_value(); });
  ran.get_future().wait();  // while the picture still stands in the way of the other
  while (pool.pending() > 2) std::this_thread::yield();  // the two pictures are still there
  gate.open();
}

TEST(WorkerPool, HigherPriorityGoesFirst) {
  Gate gate;
  std::vector<int> order;
  {
    WorkerPool pool(1, 10, 100);
    pool.submit(Kind::kPictures, 0, {1, 1}, std::ref(gate));
    gate.wait_started();
    for (const int priority : {0, 2, 1, 2})
      pool.submit(Kind::kPictures, priority, {1, 1}, [&order, priority](bool) { order.push_back(priority); });
    gate.open();
    while (pool.pending() > 0) std::this_thread::yield();
  }
  EXPECT_EQ(order, (std::vector<int>{2, 2, 1, 0}));
}

TEST(WorkerPool, RefusesWhatTheQueueCannotHold) {
  Gate gate;
  WorkerPool pool(1, 2, 100);
  pool.submit(Kind::kPictures, 0, {1, 1}, std::ref(gate));
  gate.wait_started();
  EXPECT_TRUE(pool.submit(Kind::kPictures, 0, {1, 1}, [](bool) {}));
  EXPECT_TRUE(pool.submit(Kind::kPictures, 0, {1, 1}, [](bool) {}));
  EXPECT_FALSE(pool.submit(Kind::kPictures, 0, {1, 1}, [](bool) {}));
  gate.open();
}

TEST(WorkerPool, StoppingTellsQueuedJobs) {
  Gate gate;
  std::atomic<int> told{0};
  WorkerPool pool(1, 1 << 20, 100);  // never full: what refuses below is the stop
  pool.submit(Kind::kPictures, 0, {1, 1}, std::ref(gate));
  gate.wait_started();
  for (int i = 0; i < 3; ++i) pool.submit(Kind::kPictures, 0, {1, 1}, [&](bool stopping) { told += stopping; });
  std::thread stopper([&] { pool.stop(); });
  while (pool.submit(Kind::kPictures, 0, {0, 0}, [](bool) {})) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  gate.open();
  stopper.join();
  EXPECT_GE(told, 3);
}

}  // namespace
}  // namespace tessera
