#pragma once

// Blocks and threads on the CPU: each thread of a block is a fiber; barriers and shuffles are honoured, and a barrier
// that not every thread reaches is reported. For tests of the plain family's logic, not for speed.

#include <cmath>
#include <cstddef>
#include <functional>

namespace tessera::cuda {

struct Grid;

namespace emulation {

/// Lanes of a warp in the launches that follow (32 or 64). One thread of the test program emulates at a time.
void set_warp_lanes(int lanes);
/// Runs body once for every thread of every block, with `shared` bytes of shared memory (at most 48 KB).
/// Throws std::runtime_error that names the kernel when its threads diverge at a barrier or ask for too much.
void run(const char* name, const Grid& grid, int threads, size_t shared, const std::function<void()>& body);

struct Position {
  int thread, threads, block_x, block_y, block_z;
};
const Position& position();
int lanes();
void block_barrier();
float exchange(float v, int mask);
void* shared_memory();

}  // namespace emulation

template <class P>
void launch(Stream&, const char* name, Grid grid, int threads, size_t shared, void (*kernel)(P), P parameters) {
  emulation::run(name, grid, threads, shared, [&] { kernel(parameters); });
}

namespace plain {

inline int thread_id() { return emulation::position().thread; }
inline int block_threads() { return emulation::position().threads; }
inline int block_x() { return emulation::position().block_x; }
inline int block_y() { return emulation::position().block_y; }
inline int block_z() { return emulation::position().block_z; }
inline int warp_lanes() { return emulation::lanes(); }
inline void barrier() { emulation::block_barrier(); }
inline float warp_shuffle_xor(float v, int mask) { return emulation::exchange(v, mask); }
inline void shared_add(unsigned long long* at, unsigned long long v) { *at += v; }
inline void shared_max(unsigned long long* at, unsigned long long v) { *at = *at > v ? *at : v; }
inline void* dynamic_shared() { return emulation::shared_memory(); }

}  // namespace plain
}  // namespace tessera::cuda

#define TESSERA_DEVICE inline
#define TESSERA_KERNEL(max_threads) static void
