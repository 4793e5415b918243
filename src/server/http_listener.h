#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "core/result.h"
#include "server/http.h"

namespace tessera::server {

/// Bounds of the HTTP layer: what one client may hold, and for how long.
struct HttpLimits {
  size_t max_header_bytes = 16 << 10;
  uint64_t max_body_bytes = uint64_t{64} << 20;
  uint64_t max_all_bodies_bytes = uint64_t{1}
                                  << 30;  ///< bodies being received or parsed, of all clients together
  size_t max_unread_bytes = 1 << 20;      ///< of a stream that its client does not read; then it is cut off
  uint64_t max_all_unread_bytes = uint64_t{1} << 30;  ///< answers that are not taken yet, of all clients together
  int max_connections = 1024;
  std::chrono::milliseconds idle_timeout{75'000};    ///< between two requests
  std::chrono::milliseconds header_timeout{10'000};  ///< from a head's first byte to its last
  std::chrono::milliseconds body_timeout{120'000};   ///< for the whole body
  std::chrono::milliseconds stall_timeout{15'000};   ///< between two pieces of a body
  std::chrono::milliseconds write_timeout{30'000};   ///< without the client taking a byte, or for a MiB of a whole answer
};

struct ListenOptions {
  std::string host = "127.0.0.1";  ///< an address, or a name to be resolved
  int port = 8000;                 ///< 0: any free one
  int threads = 2;
  HttpLimits limits;
};

/// An HTTP/1.1 server: keep-alive, pipelining (one request after the other), chunked streams, Expect:
/// 100-continue. A few threads carry all connections; each connection has one read outstanding at any time,
/// so that a client that goes is noticed while its answer is being made.
class HttpListener {
 public:
  static Result<std::unique_ptr<HttpListener>> open(const ListenOptions& options, HttpHandler handler);
  ~HttpListener();  ///< cuts what is left

  /// Begins to accept; call once. open() has already bound the port, so clients wait rather than fail.
  void start();

  int port() const;
  int64_t connections() const;
  uint64_t connections_refused() const;

  /// Takes no new connections; connections that carry no request are closed, the others after their answer.
  void stop_accepting();
  /// Waits until all connections are closed, at most `limit`; true when they are.
  bool wait_idle(std::chrono::milliseconds limit);
  /// Ends the threads. No handler runs afterwards; exchanges may outlive this call but not the object.
  void stop();

 private:
  struct Impl;
  explicit HttpListener(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera::server
