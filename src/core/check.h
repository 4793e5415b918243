#pragma once

#include <stdexcept>
#include <string>

namespace tessera {

/// A broken invariant: a defect of the program, never of its input. The engine's step catches it.
class CheckFailure : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// A device or operator failed at run time (a launch, a driver call). The engine ends what it touched.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);

}  // namespace tessera

/// Throws CheckFailure with place, condition and message when `condition` does not hold. `message` is any
/// expression convertible to std::string and is evaluated only on failure; say operation, given and expected.
#define TESSERA_CHECK(condition, message)                                                \
  do {                                                                                   \
    if (!(condition)) ::tessera::check_failed(__FILE__, __LINE__, #condition, (message)); \
  } while (0)
