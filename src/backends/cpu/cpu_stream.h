#pragma once

#include <vector>

#include "backends/cpu/leaf.h"
#include "core/allocator.h"
#include "core/check.h"
#include "core/thread_pool.h"
#include "ops/context.h"

namespace tessera::cpu {

/// One thread's scratch memory during an operator: pieces are taken in order and all given back at once. Lives in the
/// backend's reserved workspace; a piece that does not fit there (shapes beyond what was reserved for) is allocated.
class Scratch {
 public:
  /// Enough for every kernel at the released models' shapes; see kernel_workspace_bytes.
  static constexpr size_t kBytes = size_t{4} << 20;

  void use(void* memory, size_t bytes) {
    memory_ = static_cast<char*>(memory);
    capacity_ = bytes;
  }
  void reset() {
    used_ = 0;
    overflow_.clear();
  }
  /// `count` elements, aligned to cache lines, uninitialised.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }
  void* take_bytes(size_t bytes);

 private:
  char* memory_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
  std::vector<std::vector<char>> overflow_;
};

/// Where the CPU's operators run: a team of threads, the chosen kernels, scratch for each thread.
class CpuStream final : public Stream {
 public:
  CpuStream(int threads, const LeafKernels& leaf_kernels) : pool(threads), leaf(leaf_kernels) {
    scratch.resize(static_cast<size_t>(threads));
  }

  ThreadPool pool;
  LeafKernels leaf;
  std::vector<Scratch> scratch;

  Scratch& scratch_of(int thread) { return scratch[static_cast<size_t>(thread)]; }
};

inline CpuStream& cpu_stream(Stream& stream) { return static_cast<CpuStream&>(stream); }

inline Element element_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return kElementF32;
    case DType::kBF16: return kElementBF16;
    case DType::kF16: return kElementF16;
    default: TESSERA_CHECK(false, std::string("dtype ") + dtype_name(dtype) + " is not floating");
  }
  return kElementF32;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

/// Bytes of rows x k of packed a.
inline int64_t packed_bytes(const ProductKernels& kernels, int64_t rows, int64_t k) {
  return round_up(rows, kernels.a_rows) * round_up(k, kernels.a_depth) * static_cast<int64_t>(kernels.a_element);
}

/// Rows in pieces of `grain` over the threads; body(begin, end, thread).
template <class Body>
void parallel_rows(CpuStream& stream, int64_t rows, int64_t grain, const Body& body) {
  stream.pool.parallel_for(ceil_div(rows, grain), [&](int64_t item, int thread) {
    const int64_t begin = item * grain;
    body(begin, begin + grain < rows ? begin + grain : rows, thread);
  });
}

}  // namespace tessera::cpu
