#pragma once

// Private to http_listener.cc, http_connection*.cc and http_exchange.cc: the HTTP library behind http.h.

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <condition_variable>
#include <mutex>
#include <unordered_set>

#include "server/http_listener.h"

namespace tessera::server {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = net::ip::tcp;
using Clock = std::chrono::steady_clock;

class Connection;

constexpr size_t kReadChunk = 64 << 10;   // of one read; buffers of an idle connection shrink to it
constexpr size_t kReadAhead = 32 << 10;   // of later requests, while one is being answered

/// What all connections share: bounds, the handler, the budget of bodies, and who is connected.
struct ListenerState {
  HttpLimits limits;
  HttpHandler handler;
  std::atomic<uint64_t> body_bytes{0};
  std::atomic<uint64_t> unread_bytes{0};
  std::atomic<uint64_t> refused{0};
  std::atomic<bool> draining{false};
  std::mutex mutex;
  std::condition_variable idle;
  std::unordered_set<Connection*> connections;

  /// A lease on `bytes` of the budget of bodies, or nullptr when it is spent.
  static std::shared_ptr<void> lease_body(const std::shared_ptr<ListenerState>& state, uint64_t bytes);
};

/// One client's connection. All members belong to the socket's strand.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, std::shared_ptr<ListenerState> state);
  ~Connection();

  void start();
  /// Answers 503 and closes; for connections above the bound.
  void start_refused();
  /// Closes now when no request is under way, else after its answer. Any thread.
  void drain();

  net::any_io_executor executor() { return socket_.get_executor(); }
  // For the exchange of request number `turn`; all on the strand.
  void respond(uint64_t turn, HttpResponse response);
  void begin_stream(uint64_t turn, HttpResponse head);
  void write(uint64_t turn, std::string bytes);
  size_t unread(uint64_t turn) const { return current(turn) ? unread() : 0; }
  void on_caught_up(uint64_t turn, std::function<void()> caught_up);
  void end_stream(uint64_t turn);
  void abort(uint64_t turn);
  void on_close(uint64_t turn, std::function<void()> gone);

 private:
  enum class Phase { kIdle, kHead, kBody, kAnswering, kLingering, kClosed };
  using Parser = http::request_parser<http::string_body>;

  void read_some();
  void on_read(beast::error_code error, size_t bytes);
  void on_end_of_input();
  void parse();
  bool parse_step();
  bool on_head();
  bool account_body();
  void on_request();
  HttpRequest take_head() const;
  void refuse(int status, const std::string& message);
  void queue_head(const HttpResponse& response, bool chunked);
  void write_some();
  void on_written(beast::error_code error, size_t bytes);
  void on_answered();
  void lose();
  void linger();
  void close();
  void set_deadline(Clock::time_point when);
  void arm_timer(Clock::time_point when);
  void on_deadline();
  size_t unread() const { return pending_.size() + sending_.size() - sent_; }
  void count_unread();
  bool has_room_for(size_t bytes) const;
  void finish_answer();
  bool current(uint64_t turn) const { return phase_ == Phase::kAnswering && turn == turn_ && !complete_; }

  tcp::socket socket_;
  std::shared_ptr<ListenerState> state_;
  net::steady_timer timer_;
  Clock::time_point deadline_ = Clock::time_point::max();
  Clock::time_point armed_ = Clock::time_point::max();
  Clock::time_point body_deadline_ = Clock::time_point::max();
  Clock::time_point taken_deadline_ = Clock::time_point::max();  // for the client to take an answer that is whole
  Phase phase_ = Phase::kIdle;
  std::string peer_;

  beast::flat_buffer input_;
  std::string incoming_;  // where the read under way writes: input_ is consumed meanwhile, which moves its end
  std::optional<Parser> parser_;
  std::shared_ptr<void> body_lease_;
  uint64_t body_leased_ = 0;
  bool reading_ = false;
  bool input_ended_ = false;
  size_t lingered_ = 0;

  uint64_t turn_ = 0;  // number of the request being answered
  std::string request_id_;
  bool head_only_ = false;  // HEAD
  bool http10_ = false;
  bool keep_alive_ = true;
  bool streaming_ = false;
  bool complete_ = false;  // the whole answer is queued
  std::function<void()> gone_;
  std::function<void()> caught_up_;
  std::string pending_;  // to be sent after sending_
  std::string sending_;
  size_t sent_ = 0;
  size_t counted_ = 0;  // bytes of pending_ and sending_ in the count of all clients
  bool writing_ = false;
};

/// Where the engine's threads can reach request number `turn`; outlives the connection.
std::shared_ptr<Exchange> make_exchange(std::shared_ptr<Connection> connection, uint64_t turn,
                                        HttpRequest request);

/// 32 hexadecimal digits that nobody can guess.
std::string random_id();

}  // namespace tessera::server
