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

/// Names and values from outside stand in messages: control characters in them (line ends, terminal escapes) become
/// backslash escapes, so that a message is one line that can't write on a terminal.
inline std::string one_line(std::string message) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string line;
  line.reserve(message.size());
  for (const char c : message) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f)
      line += c;
    else if (c == '\n')
      line += "\\n";
    else
      (line += "\\x") += {kDigits[byte / 16], kDigits[byte % 16]};
  }
  return line;
}

/// An expected failure as a value: a code and one line that says what is wrong, with the value and the
/// limit, and what to do. Default construction is success.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(one_line(std::move(message))) {}

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
