#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "core/result.h"
#include "server/http_listener.h"
#include "server/media.h"
#include "server/openai_types.h"
#include "tessera/engine.h"

namespace tessera::server {

struct ServerOptions {
  ListenOptions listen;
  RequestBounds bounds;
  MediaPolicy media;
  std::string model_name;  ///< what /v1/models shows; "" takes the engine's own
  std::string model_path;  ///< also accepted as a request's `model`
  std::string api_key_file;
  std::vector<std::string> allowed_hosts;  ///< Host names beside loopback's own; "*" allows all
  int64_t max_requests_per_client = 0;     ///< under way at once; 0: no bound
  double request_timeout_s = 600;          ///< a request's deadline; X-Request-Timeout may lower it
  int workers = 2;                         ///< threads that parse bodies
  int fetchers = 4;                        ///< threads that fetch pictures
  size_t max_parse_queue = 1024;           ///< bodies waiting for a worker
};

/// The HTTP server over one engine. It listens at once; until set_engine() the model's endpoints answer 503.
/// Thread rule: the methods below from one thread; requests run on the listener's and the workers' threads.
class Server {
 public:
  static Result<std::unique_ptr<Server>> open(const ServerOptions& options);
  ~Server();  ///< stop(), without waiting for requests

  int port() const;
  /// Call once. The server owns the engine and ends it after the last connection's thread.
  void set_engine(std::unique_ptr<Engine> engine);
  /// Reads --api-key-file anew; on failure the old keys stay.
  Status reload_keys();

  /// Takes no new requests, waits at most `limit` for those under way, cancels the rest with 503, and ends
  /// everything. `hurry` ends the waiting early when it becomes true. True when all requests were finished.
  bool drain_and_stop(std::chrono::milliseconds limit, const std::atomic<bool>& hurry);

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera::server
