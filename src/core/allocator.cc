#include "core/allocator.h"

#include <numeric>
#include <utility>

namespace tessera {

const char* memory_line_name(MemoryLine line) {
  static constexpr std::array<const char*, kMemoryLineCount> kNames = {
      "language_weights", "vision_weights", "kv_cache",      "vision_workspace", "activations", "logits",
      "embedding_cache",  "staging",        "communication", "graphs",           "driver"};
  return kNames[static_cast<size_t>(line)];
}

Buffer::Buffer(Buffer&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      line_(other.line_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(owner_, other.owner_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(line_, other.line_);
  return *this;
}

Buffer::~Buffer() {
  if (owner_) owner_->release(data_, size_, line_);
}

Tensor Buffer::tensor(DType dtype, std::initializer_list<int64_t> shape) const {
  Tensor view(data_, dtype, shape);
  TESSERA_CHECK(view.bytes() <= size_,
                "Buffer of " + std::to_string(size_) + " bytes is too small for " + view.describe());
  return view;
}

Buffer Allocator::allocate(size_t bytes, MemoryLine line, const std::string& what) {
  const size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (size == 0) return {};
  if (limit_ != 0 && used() + size > limit_)
    throw OutOfMemory(what + " needs " + std::to_string(size) + " bytes; " + std::to_string(used()) + " of the " +
                      std::to_string(limit_) + " planned are in use");
  void* data = take(size);
  if (!data && !counting())
    throw OutOfMemory(what + " needs " + std::to_string(size) + " bytes, which the device does not have; " +
                      std::to_string(used()) + " are in use");
  used_[static_cast<size_t>(line)] += size;
  ++allocations_;
  return Buffer(this, data, size, line);
}

Buffer Allocator::allocate(DType dtype, std::initializer_list<int64_t> shape, MemoryLine line,
                           const std::string& what) {
  return allocate(Tensor(nullptr, dtype, shape).bytes(), line, what);
}

size_t Allocator::used() const { return std::accumulate(used_.begin(), used_.end(), size_t{0}); }

void Allocator::release(void* data, size_t bytes, MemoryLine line) {
  used_[static_cast<size_t>(line)] -= bytes;
  if (data) give_back(data, bytes);
}

}  // namespace tessera
