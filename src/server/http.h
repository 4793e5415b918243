#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera::server {

/// Header fields in their order; names in lower case.
using Headers = std::vector<std::pair<std::string, std::string>>;

/// One request as it came in. `path` is percent-decoded and has no query.
struct HttpRequest {
  std::string id;  ///< the client's X-Request-Id where it is well formed, else a random one
  std::string method;
  std::string path;
  Headers headers;
  std::string body;
  std::string peer;                  ///< the client's address without its port
  std::shared_ptr<void> body_lease;  ///< gives the body's bytes back to the budget; reset with the body

  const std::string* header(std::string_view lower_case_name) const {
    for (const auto& [name, value] : headers)
      if (name == lower_case_name) return &value;
    return nullptr;
  }
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  Headers headers;  ///< beside Content-Type, Content-Length, Connection, Date and X-Request-Id
};

/// One request and the way back to its client. Thread-safe, except request(), which belongs to whoever
/// handles it. Either respond() once, or begin_stream(), write()..., end_stream(). Calls after the client has
/// gone do nothing.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual HttpRequest& request() = 0;
  virtual void respond(HttpResponse response) = 0;
  /// Sends the head of an answer of unknown length; `head.body` is not looked at.
  virtual void begin_stream(HttpResponse head) = 0;
  /// Appends to the stream. When more than the bound is unread already the client is cut off, so memory stays
  /// bounded.
  virtual void write(std::string bytes) = 0;
  /// What the client has not taken yet, in bytes. In defer()'s work only.
  virtual size_t unread() = 0;
  /// `caught_up` runs once, on the connection's strand, when nothing is unread any more. In defer()'s work only.
  virtual void on_caught_up(std::function<void()> caught_up) = 0;
  virtual void end_stream() = 0;
  /// Ends the stream so that the client notices that it is not whole (the connection is cut).
  virtual void abort() = 0;
  /// `gone` runs once, on the connection's strand, when the client goes before its answer is complete.
  virtual void on_close(std::function<void()> gone) = 0;
  /// Runs `work` on the connection's strand: never two at a time for one connection, in order.
  virtual void defer(std::function<void()> work) = 0;
};

/// What a listener asks of the program above it.
struct HttpHandler {
  /// Called on the connection's strand when the head is there and the body is not: a response refuses the
  /// request before its body is read (unknown paths, missing keys, wrong types).
  std::function<std::optional<HttpResponse>(const HttpRequest& head)> check_head;
  /// Called on the connection's strand with the whole request; must not block.
  std::function<void(std::shared_ptr<Exchange>)> handle;
  /// An error found by the HTTP layer itself (malformed, too large, too slow), as a body for the client.
  std::function<HttpResponse(int status, const std::string& message)> error;
};

/// The reason phrase of a status.
const char* reason_phrase(int status);

}  // namespace tessera::server
