#include "server/server.h"

#include <ctime>
#include <thread>

#include "server/log.h"
#include "server/routes.h"

namespace tessera::server {

// Members are destroyed from the last to the first: the listener (connections) before the endpoints, and the
// engine, which calls into both, is ended by stop() before either.
struct Server::Impl {
  explicit Impl(const ServerOptions& options) : endpoints(options) {}

  void stop();

  std::unique_ptr<Engine> engine;
  Endpoints endpoints;
  std::unique_ptr<HttpListener> listener;
  bool stopped = false;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() {
  impl_->stop();
}

Result<std::unique_ptr<Server>> Server::open(const ServerOptions& given) {
  ServerOptions options = given;
  TESSERA_RETURN_IF_ERROR(prepare_media_policy(&options.media));
  auto impl = std::make_unique<Impl>(options);
  Endpoints& endpoints = impl->endpoints;
  TESSERA_RETURN_IF_ERROR(endpoints.keys.load(options.api_key_file));
  endpoints.started = std::time(nullptr);
  endpoints.gauges = [raw = impl.get()] {
    Metrics::Gauges gauges;
    gauges.ready = raw->endpoints.engine.load() && !raw->endpoints.draining;
    if (raw->listener) {
      gauges.connections = raw->listener->connections();
      gauges.connections_refused = raw->listener->connections_refused();
    }
    return gauges;
  };
  endpoints.model_name = [&endpoints] {
    if (!endpoints.options.model_name.empty()) return endpoints.options.model_name;
    Engine* engine = endpoints.engine.load();
    return engine ? engine->model().name : std::string("loading");
  };
  HttpHandler handler;
  handler.check_head = [&endpoints](const HttpRequest& head) { return check_head(endpoints, head); };
  handler.handle = [&endpoints](std::shared_ptr<Exchange> exchange) {
    handle(endpoints, std::move(exchange));
  };
  handler.error = [&endpoints](int status, const std::string& message) {
    endpoints.metrics.count_response("other", status);
    return error_response({status, message, "", status == 503 ? "unavailable" : "", status == 503 ? 1 : 0});
  };
  TESSERA_ASSIGN_OR_RETURN(impl->listener, HttpListener::open(options.listen, std::move(handler)));
  impl->listener->start();
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

int Server::port() const {
  return impl_->listener->port();
}

void Server::set_engine(std::unique_ptr<Engine> engine) {
  impl_->engine = std::move(engine);
  impl_->endpoints.engine = impl_->engine.get();
}

Status Server::reload_keys() {
  const Status status = impl_->endpoints.keys.load(impl_->endpoints.options.api_key_file);
  if (status.ok())
    log_info("keys_read", {{"keys", static_cast<int64_t>(impl_->endpoints.keys.count())}});
  else
    log_error("keys_not_read", {{"error", status.message()}});
  return status;
}

bool Server::drain_and_stop(std::chrono::milliseconds limit, const std::atomic<bool>& hurry) {
  using Clock = std::chrono::steady_clock;
  Endpoints& endpoints = impl_->endpoints;
  endpoints.draining = true;
  impl_->listener->stop_accepting();
  const auto deadline = Clock::now() + limit;
  bool idle = false;
  while (!idle && !hurry && Clock::now() < deadline)
    idle = impl_->listener->wait_idle(std::chrono::milliseconds(50));
  if (!idle) {
    endpoints.active.cancel_all();
    impl_->listener->wait_idle(std::chrono::milliseconds(1000));  // their last words
  }
  impl_->stop();
  return idle;
}

void Server::Impl::stop() {
  if (stopped) return;
  stopped = true;
  endpoints.draining = true;
  endpoints.workers.stop();
  endpoints.fetchers.stop();
  if (listener) listener->stop();  // from here on nothing calls the engine
  endpoints.engine = nullptr;
  engine.reset();  // its last callbacks queue work that nobody will run
}

}  // namespace tessera::server
