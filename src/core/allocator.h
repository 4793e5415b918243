#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/tensor.h"

namespace tessera {

/// What memory is for: the lines of `tessera plan`, in its order.
enum class MemoryLine : uint8_t {
  kLanguageWeights,
  kVisionWeights,
  kKvCache,
  kVisionWorkspace,
  kActivations,
  kLogits,  ///< logits and what sampling needs
  kEmbeddingCache,
  kStaging,
  kCommunication,
  kGraphs,
  kDriver,
};
inline constexpr size_t kMemoryLineCount = 11;
const char* memory_line_name(MemoryLine line);

class Allocator;

/// Owns memory of one allocator; views of it are Tensors. Empty (data() null) when the allocator only counted.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  void* data() const { return data_; }
  size_t size() const { return size_; }
  /// A view of the first elements. With a counting allocator its data is null.
  Tensor tensor(DType dtype, std::initializer_list<int64_t> shape) const;

 private:
  friend class Allocator;
  Buffer(Allocator* owner, void* data, size_t size, MemoryLine line)
      : owner_(owner), data_(data), size_(size), line_(line) {}

  Allocator* owner_ = nullptr;
  void* data_ = nullptr;
  size_t size_ = 0;
  MemoryLine line_ = MemoryLine::kActivations;
};

/// Gives memory and keeps the account of it by line. Planning and allocating are one code path: everything that a
/// running model will hold is asked of an Allocator, and a CountingAllocator answers with empty buffers while
/// adding up the same (rounded) sizes. Code that fills memory does so only when `Buffer::data()` is not null.
/// Thread rule: one thread at a time. An allocator outlives its buffers.
class Allocator {
 public:
  /// Blocks start at multiples of this, and sizes are rounded up to it (a GPU's coalescing and CPU cache lines).
  static constexpr size_t kAlignment = 256;

  virtual ~Allocator() = default;

  /// At least `bytes` bytes, aligned to kAlignment; `what` names the user in the error. Throws OutOfMemory when the
  /// memory is not there or a limit set by limit() would be passed.
  Buffer allocate(size_t bytes, MemoryLine line, const std::string& what);
  /// A whole tensor of its own; the buffer must outlive the view, hence both.
  Buffer allocate(DType dtype, std::initializer_list<int64_t> shape, MemoryLine line, const std::string& what);

  /// Bytes in use now, by line and in all.
  size_t used(MemoryLine line) const { return used_[static_cast<size_t>(line)]; }
  size_t used() const;
  /// Number of allocations made so far: start-up ends, this stands still.
  uint64_t allocations() const { return allocations_; }
  /// Refuses to go past `bytes` in all (0: no limit).
  void limit(size_t bytes) { limit_ = bytes; }
  /// True when nothing is really allocated.
  virtual bool counting() const { return false; }

 protected:
  virtual void* take(size_t bytes) = 0;
  virtual void give_back(void* data, size_t bytes) = 0;

 private:
  friend class Buffer;
  void release(void* data, size_t bytes, MemoryLine line);

  std::array<size_t, kMemoryLineCount> used_{};
  size_t limit_ = 0;
  uint64_t allocations_ = 0;
};

/// Adds up what would be allocated.
class CountingAllocator final : public Allocator {
 public:
  bool counting() const override { return true; }

 protected:
  void* take(size_t) override { return nullptr; }
  void give_back(void*, size_t) override {}
};

/// Memory that is not there: who asked for how much, and what is in use.
class OutOfMemory : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace tessera
