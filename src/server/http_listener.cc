#include "server/http_listener.h"

#include <sys/random.h>
#include <sys/resource.h>

#include <boost/asio/post.hpp>
#include <thread>

#include "server/http_connection.h"
#include "server/log.h"

namespace tessera::server {
namespace {

// Each connection is a file; the soft limit of 1024 is below what the options allow.
void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

}  // namespace

std::string random_id() {
  unsigned char bytes[16] = {};
  size_t have = 0;
  while (have < sizeof bytes) {
    const ssize_t got = getrandom(bytes + have, sizeof bytes - have, 0);
    if (got > 0) have += static_cast<size_t>(got);
  }
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string id;
  for (unsigned char byte : bytes) {
    id += kDigits[byte >> 4];
    id += kDigits[byte & 15];
  }
  return id;
}

struct HttpListener::Impl {
  Impl(const ListenOptions& options, HttpHandler handler)
      : state(std::make_shared<ListenerState>()),
        io(options.threads),
        acceptor(net::make_strand(io)),
        retry(acceptor.get_executor()) {
    state->limits = options.limits;
    state->handler = std::move(handler);
  }

  Status bind(const ListenOptions& options);
  void accept();
  void run();

  std::shared_ptr<ListenerState> state;
  net::io_context io;
  tcp::acceptor acceptor;    // it and its timer are touched on their strand alone
  net::steady_timer retry;
  std::vector<std::thread> threads;
  int port = 0;
  int thread_count = 1;
};

Status HttpListener::Impl::bind(const ListenOptions& options) {
  beast::error_code error;
  tcp::resolver resolver(io);
  const auto found = resolver.resolve(options.host, std::to_string(options.port),
                                      tcp::resolver::passive | tcp::resolver::numeric_service, error);
  const std::string where = options.host + ":" + std::to_string(options.port);
  if (error || found.empty())
    return invalid_input("[serve] --host " + options.host + ": no such address (" + error.message() + ")");
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(net::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(1024, error);
  if (error)
    return invalid_input("[serve] cannot listen on " + where + ": " + error.message() + "; choose --port");
  port = acceptor.local_endpoint(error).port();
  return {};
}

void HttpListener::Impl::accept() {
  acceptor.async_accept(net::make_strand(io), [this](beast::error_code error, tcp::socket socket) {
    if (!acceptor.is_open()) return;
    if (error) {  // out of files, most likely: wait for some connection to close
      retry.expires_after(std::chrono::milliseconds(100));
      retry.async_wait([this](beast::error_code cancelled) {
        if (!cancelled) accept();
      });
      return;
    }
    auto connection = std::make_shared<Connection>(std::move(socket), state);
    size_t count;
    {
      std::lock_guard lock(state->mutex);
      count = state->connections.size();
    }
    if (static_cast<int64_t>(count) > state->limits.max_connections)
      connection->start_refused();
    else
      connection->start();
    accept();
  });
}

// An exception (memory ran out, most likely) ends the connection whose handler threw, not the process.
void HttpListener::Impl::run() {
  while (!io.stopped()) {
    try {
      io.run();
      return;
    } catch (const std::exception& error) {
      log_error("http", {{"error", error.what()}});
    }
  }
}

HttpListener::HttpListener(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<HttpListener>> HttpListener::open(const ListenOptions& options, HttpHandler handler) {
  raise_file_limit();
  auto impl = std::make_unique<Impl>(options, std::move(handler));
  TESSERA_RETURN_IF_ERROR(impl->bind(options));
  impl->thread_count = options.threads;
  return std::unique_ptr<HttpListener>(new HttpListener(std::move(impl)));
}

void HttpListener::start() {
  net::post(impl_->acceptor.get_executor(), [raw = impl_.get()] { raw->accept(); });
  // The guard keeps the threads alive after the acceptor closes, until stop().
  for (int i = 0; i < impl_->thread_count; ++i)
    impl_->threads.emplace_back([raw = impl_.get(), work = net::make_work_guard(impl_->io)] { raw->run(); });
}

HttpListener::~HttpListener() {
  stop();
}

int HttpListener::port() const {
  return impl_->port;
}

int64_t HttpListener::connections() const {
  std::lock_guard lock(impl_->state->mutex);
  return static_cast<int64_t>(impl_->state->connections.size());
}

uint64_t HttpListener::connections_refused() const {
  return impl_->state->refused;
}

void HttpListener::stop_accepting() {
  impl_->state->draining = true;
  net::post(impl_->acceptor.get_executor(), [impl = impl_.get()] {
    beast::error_code ignored;
    impl->acceptor.close(ignored);
    impl->retry.cancel(ignored);
    std::vector<std::shared_ptr<Connection>> held;  // a last reference must not be dropped under the lock
    {
      std::lock_guard lock(impl->state->mutex);
      for (Connection* connection : impl->state->connections)
        if (auto shared = connection->weak_from_this().lock()) held.push_back(std::move(shared));
    }
    for (const auto& connection : held) connection->drain();
  });
}

bool HttpListener::wait_idle(std::chrono::milliseconds limit) {
  std::unique_lock lock(impl_->state->mutex);
  return impl_->state->idle.wait_for(lock, limit, [this] { return impl_->state->connections.empty(); });
}

void HttpListener::stop() {
  impl_->io.stop();
  for (std::thread& thread : impl_->threads)
    if (thread.joinable()) thread.join();
}

const char* reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 503:
      return "Service Unavailable";
    default:
      return "Unknown";
  }
}

}  // namespace tessera::server
