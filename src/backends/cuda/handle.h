#pragma once

#include <utility>

namespace tessera::cuda {

/// Owns a CUDA handle of any kind; `Destroy` is called once, and never on an empty handle.
///   using EventHandle = Handle<cudaEvent_t, cudaEventDestroy>;
template <class T, auto Destroy>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T value) : value_(value) {}
  Handle(Handle&& other) noexcept : value_(std::exchange(other.value_, T{})) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Handle() {
    if (value_ != T{}) Destroy(value_);
  }

  T get() const { return value_; }
  /// For functions that return the handle through a pointer. Requires: empty.
  T* receive() { return &value_; }
  explicit operator bool() const { return value_ != T{}; }

 private:
  T value_{};
};

}  // namespace tessera::cuda
