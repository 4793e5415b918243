#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/check.h"
#include "core/dtype.h"

namespace tessera {

/// A view of memory that someone else owns (Buffer, mapping): pointer, dtype and up to four dimensions. The memory
/// may be a device's; whoever dereferences must know. Dimension 0 counts rows; a row's elements are contiguous, and
/// rows lie `row_stride` elements apart, so that a column range of a packed matrix is a view, too.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, 4> dims{1, 1, 1, 1};
  int64_t row_stride = 0;  ///< elements

  Tensor() = default;
  /// A contiguous view.
  Tensor(void* memory, DType type, std::initializer_list<int64_t> shape) : data(memory), dtype(type) {
    TESSERA_CHECK(shape.size() >= 1 && shape.size() <= 4, "Tensor: rank must be 1..4");
    for (int64_t d : shape) dims[static_cast<size_t>(rank++)] = d;
    row_stride = row_elements();
  }

  explicit operator bool() const { return data != nullptr; }

  int64_t rows() const { return dims[0]; }
  /// Elements of one row: the product of dims 1.. .
  int64_t row_elements() const { return dims[1] * dims[2] * dims[3]; }
  int64_t elements() const { return dims[0] * row_elements(); }
  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype); }
  bool contiguous() const { return row_stride == row_elements() || dims[0] <= 1; }

  template <class T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
  template <class T>
  T* row(int64_t i) const {
    return static_cast<T*>(data) + i * row_stride;
  }

  /// Rows [begin, begin + count).
  Tensor slice(int64_t begin, int64_t count) const {
    TESSERA_CHECK(begin >= 0 && count >= 0 && begin + count <= dims[0],
                  "slice: rows " + std::to_string(begin) + "+" + std::to_string(count) + " of " +
                      std::to_string(dims[0]));
    Tensor t = *this;
    t.data = static_cast<char*>(data) + static_cast<size_t>(begin * row_stride) * size_of(dtype);
    t.dims[0] = count;
    return t;
  }
  /// Columns [begin, begin + count) of a matrix.
  Tensor columns(int64_t begin, int64_t count) const {
    TESSERA_CHECK(rank == 2 && begin >= 0 && count >= 0 && begin + count <= dims[1],
                  "columns: " + std::to_string(begin) + "+" + std::to_string(count) + " of " +
                      std::to_string(dims[1]));
    Tensor t = *this;
    t.data = static_cast<char*>(data) + static_cast<size_t>(begin) * size_of(dtype);
    t.dims[1] = count;
    return t;
  }

  /// "bf16[1025, 1024]" for messages.
  std::string describe() const {
    std::string text = std::string(dtype_name(dtype)) + "[";
    for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(dims[static_cast<size_t>(i)]);
    return text + "]";
  }
};

}  // namespace tessera
