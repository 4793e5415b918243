#include "server/http_connection.h"

#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>

namespace tessera::server {
namespace {

// Where the client can reach the request: one per request, outlives the connection.
class ConnectionExchange : public Exchange {
 public:
  ConnectionExchange(std::shared_ptr<Connection> connection, uint64_t turn, HttpRequest request)
      : connection_(std::move(connection)), turn_(turn), request_(std::move(request)) {}

  HttpRequest& request() override { return request_; }
  void respond(HttpResponse response) override {
    run([turn = turn_, response = std::move(response)](Connection& c) mutable {
      c.respond(turn, std::move(response));
    });
  }
  void begin_stream(HttpResponse head) override {
    run([turn = turn_, head = std::move(head)](Connection& c) mutable {
      c.begin_stream(turn, std::move(head));
    });
  }
  void write(std::string bytes) override {
    run([turn = turn_, bytes = std::move(bytes)](Connection& c) mutable { c.write(turn, std::move(bytes)); });
  }
  size_t unread() override { return connection_->unread(turn_); }
  void on_caught_up(std::function<void()> caught_up) override {
    connection_->on_caught_up(turn_, std::move(caught_up));
  }
  void end_stream() override {
    run([turn = turn_](Connection& c) { c.end_stream(turn); });
  }
  void abort() override {
    run([turn = turn_](Connection& c) { c.abort(turn); });
  }
  void on_close(std::function<void()> gone) override {
    run([turn = turn_, gone = std::move(gone)](Connection& c) mutable { c.on_close(turn, std::move(gone)); });
  }
  void defer(std::function<void()> work) override { net::post(connection_->executor(), std::move(work)); }

 private:
  template <class Work>
  void run(Work work) {
    net::dispatch(connection_->executor(),
                  [connection = connection_, work = std::move(work)]() mutable { work(*connection); });
  }

  std::shared_ptr<Connection> connection_;
  uint64_t turn_;
  HttpRequest request_;
};

}  // namespace

std::shared_ptr<Exchange> make_exchange(std::shared_ptr<Connection> connection, uint64_t turn,
                                        HttpRequest request) {
  return std::make_shared<ConnectionExchange>(std::move(connection), turn, std::move(request));
}

}  // namespace tessera::server
