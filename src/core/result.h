#pragma once

#include <optional>
#include <type_traits>
#include <utility>

#include "core/check.h"
#include "tessera/status.h"

namespace tessera {

/// A value or the Status that says why there is none (std::expected is not in g++ 12).
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT(google-explicit-constructor): `return value;`
  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-explicit-constructor): `return status;`
    TESSERA_CHECK(!status_.ok(), "a Result without a value needs a failure");
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  /// Requires: ok().
  T& value() & {
    TESSERA_CHECK(ok(), status_.message());
    return *value_;
  }
  const T& value() const& {
    TESSERA_CHECK(ok(), status_.message());
    return *value_;
  }
  T&& value() && {
    TESSERA_CHECK(ok(), status_.message());
    return std::move(*value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace tessera

/// Leaves the enclosing function with the failure of `expr`, a Status or anything convertible to one.
#define TESSERA_RETURN_IF_ERROR(expr)               \
  do {                                              \
    ::tessera::Status tessera_status_ = (expr);     \
    if (!tessera_status_.ok()) return tessera_status_; \
  } while (0)

#define TESSERA_CONCAT_INNER(a, b) a##b
#define TESSERA_CONCAT(a, b) TESSERA_CONCAT_INNER(a, b)

/// `TESSERA_ASSIGN_OR_RETURN(auto x, f());`: x is the value of the Result, or the function returns its failure.
#define TESSERA_ASSIGN_OR_RETURN(lhs, expr) \
  TESSERA_ASSIGN_OR_RETURN_IMPL(TESSERA_CONCAT(tessera_result_, __LINE__), lhs, expr)
#define TESSERA_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                                  \
  if (!tmp.ok()) return tmp.status();                 \
  lhs = std::move(tmp).value()
