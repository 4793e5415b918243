#pragma once

#include <algorithm>
#include <cstdint>

#include "core/allocator.h"
#include "core/tensor.h"

namespace tessera {

/// Places matrices in one buffer. Matrices that are never alive together are alternatives: they begin at the same
/// mark. First place everything, then allocate bytes(), then take views.
class Workspace {
 public:
  struct Slot {
    size_t offset = 0;
    DType dtype = DType::kF32;
    int64_t rows = 0;
    int64_t cols = 0;
  };

  /// Behind what was placed last.
  Slot place(DType dtype, int64_t rows, int64_t cols) {
    const Slot slot{at_, dtype, rows, cols};
    const size_t bytes = static_cast<size_t>(rows) * static_cast<size_t>(cols) * size_of(dtype);
    at_ += (bytes + Allocator::kAlignment - 1) / Allocator::kAlignment * Allocator::kAlignment;
    bytes_ = std::max(bytes_, at_);
    return slot;
  }
  size_t mark() const { return at_; }
  /// What is placed next is an alternative to all that was placed since the mark.
  void rewind(size_t mark) { at_ = mark; }
  size_t bytes() const { return bytes_; }

  void allocate(Allocator& allocator, MemoryLine line, const std::string& what) {
    buffer_ = allocator.allocate(bytes_, line, what);
  }
  /// The first `rows` rows. Requires: allocate() was called.
  Tensor view(const Slot& slot, int64_t rows) const {
    TESSERA_CHECK(rows <= slot.rows, "workspace has " + std::to_string(slot.rows) + " rows, not " +
                                         std::to_string(rows) + "; raise the limits given to reserve()");
    return Tensor(static_cast<char*>(buffer_.data()) + slot.offset, slot.dtype, {rows, slot.cols});
  }

 private:
  Buffer buffer_;
  size_t at_ = 0;
  size_t bytes_ = 0;
};

}  // namespace tessera
