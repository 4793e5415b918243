#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "backends/cuda/plain/portable.h"

namespace tessera::cuda::emulation {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kSharedLimit = 48 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Position position;
  bool done = false;
  uint64_t block_waits = 0;  ///< barriers this thread has arrived at
  uint64_t warp_waits = 0;
};

/// One block at a time; its fibers take turns.
struct Machine {
  int lanes = 32;
  std::vector<std::unique_ptr<Fiber>> fibers;
  size_t live = 0;
  Fiber* current = nullptr;
  ucontext_t scheduler;
  const std::function<void()>* body = nullptr;
  std::vector<char> shared;
  std::vector<float> slots;  ///< a shuffle's values, by thread
  bool progressed = false;
  std::exception_ptr failure;
};

Machine& machine() {
  static thread_local Machine instance;
  return instance;
}

void yield() {
  Machine& m = machine();
  swapcontext(&m.current->context, &m.scheduler);
}

void entry() {
  Machine& m = machine();
  try {
    (*m.body)();
  } catch (...) {
    m.failure = std::current_exception();
  }
  m.current->done = true;
  m.progressed = true;
  swapcontext(&m.current->context, &m.scheduler);
}

/// Waits until every fiber in [begin, end) has arrived as often as this one.
void wait_for(size_t begin, size_t end, uint64_t Fiber::*count) {
  Machine& m = machine();
  const uint64_t mine = ++(m.current->*count);
  m.progressed = true;
  auto arrived = [&] {
    for (size_t i = begin; i < end; ++i)
      if (m.fibers[i].get()->*count < mine) return false;
    return true;
  };
  while (!arrived()) yield();
  m.progressed = true;
}

void start(Fiber& fiber) {
  if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStackBytes);
  fiber.done = false;
  fiber.block_waits = fiber.warp_waits = 0;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

void run_block(Machine& m, const char* name, int threads) {
  for (int i = 0; i < threads; ++i) start(*m.fibers[static_cast<size_t>(i)]);
  for (bool running = true; running;) {
    running = false;
    m.progressed = false;
    for (int i = 0; i < threads; ++i) {
      Fiber& fiber = *m.fibers[static_cast<size_t>(i)];
      if (fiber.done) continue;
      running = true;
      m.current = &fiber;
      swapcontext(&m.scheduler, &fiber.context);
    }
    if (m.failure) std::rethrow_exception(std::exchange(m.failure, nullptr));
    if (running && !m.progressed)
      throw std::runtime_error(std::string(name) + ": a barrier or shuffle is not reached by all threads");
  }
}

}  // namespace

void set_warp_lanes(int lanes) { machine().lanes = lanes; }
const Position& position() { return machine().current->position; }
int lanes() { return machine().lanes; }
void* shared_memory() { return machine().shared.data(); }

void block_barrier() {
  wait_for(0, machine().live, &Fiber::block_waits);
}

float exchange(float v, int mask) {
  Machine& m = machine();
  const auto thread = static_cast<size_t>(m.current->position.thread);
  const size_t begin = thread / static_cast<size_t>(m.lanes) * static_cast<size_t>(m.lanes);
  const size_t end = std::min(begin + static_cast<size_t>(m.lanes), m.live);
  m.slots[thread] = v;
  wait_for(begin, end, &Fiber::warp_waits);
  const float other = m.slots[begin + ((thread - begin) ^ static_cast<size_t>(mask))];
  wait_for(begin, end, &Fiber::warp_waits);
  return other;
}

void run(const char* name, const Grid& grid, int threads, size_t shared, const std::function<void()>& body) {
  Machine& m = machine();
  if (shared > kSharedLimit)
    throw std::runtime_error(std::string(name) + " asks for " + std::to_string(shared) + " bytes of shared memory");
  if (threads <= 0 || threads > 1024 || threads % 64 != 0)
    throw std::runtime_error(std::string(name) + " asks for " + std::to_string(threads) + " threads a block");
  while (m.fibers.size() < static_cast<size_t>(threads)) m.fibers.push_back(std::make_unique<Fiber>());
  m.live = static_cast<size_t>(threads);
  m.slots.assign(m.live, 0);
  m.body = &body;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        std::vector<char>(shared, static_cast<char>(0xcd)).swap(m.shared);  // a read before a write shows
        for (int i = 0; i < threads; ++i)
          m.fibers[static_cast<size_t>(i)]->position = {i, threads, static_cast<int>(x), static_cast<int>(y),
                                                        static_cast<int>(z)};
        run_block(m, name, threads);
      }
}

}  // namespace tessera::cuda::emulation
