#pragma once

#include <string>
#include <utility>

namespace tessera {

/// What kind of failure a Status carries; the program's exit code and the server's HTTP status follow from it.
enum class StatusCode {
  kOk,
  kInvalidInput,  ///< the caller's input or usage is wrong (exit code 2, HTTP 400)
  kUnprocessable, ///< well-formed, but its content can't be processed: a picture that doesn't decode (2, HTTP 422)
  kTooLong,       ///< a prompt longer than the session (exit code 2, HTTP 400)
  kDoesNotFit,    ///< the request or model exceeds a memory or length limit (exit code 3, HTTP 400)
  kUnavailable,   ///< can't be served now: queue full, draining (HTTP 429 / 503)
  kCancelled,     ///< ended by its owner
  kDeadline,      ///< ended by its deadline (HTTP 408)
  kInternal,      ///< a defect or a device failure (exit code 1, HTTP 500)
};

/// An expected failure as a value: a code and one line that says what is wrong, with the value and the
/// limit, and what to do. Default construction is success.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

  /// The same failure with "context: " in front of its message; success stays success.
  Status with_context(const std::string& context) const {
    return ok() ? *this : Status(code_, context + ": " + message_);
  }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status invalid_input(std::string message) { return {StatusCode::kInvalidInput, std::move(message)}; }
inline Status unprocessable(std::string message) { return {StatusCode::kUnprocessable, std::move(message)}; }
inline Status too_long(std::string message) { return {StatusCode::kTooLong, std::move(message)}; }
inline Status does_not_fit(std::string message) { return {StatusCode::kDoesNotFit, std::move(message)}; }
inline Status unavailable(std::string message) { return {StatusCode::kUnavailable, std::move(message)}; }
inline Status internal_error(std::string message) { return {StatusCode::kInternal, std::move(message)}; }

}  // namespace tessera
