// A connection's life: how it begins, its deadlines, the ways it ends.
#include "server/http_connection.h"

#include <netinet/tcp.h>
#include <sys/socket.h>

#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>

namespace tessera::server {
namespace {

constexpr auto kLingerTime = std::chrono::seconds(2);

}  // namespace

Connection::Connection(tcp::socket socket, std::shared_ptr<ListenerState> state)
    : socket_(std::move(socket)),
      state_(std::move(state)),
      timer_(socket_.get_executor()),
      input_(std::max(state_->limits.max_header_bytes, kReadAhead) + 2 * kReadChunk) {
  beast::error_code ignored;
  const auto endpoint = socket_.remote_endpoint(ignored);
  if (!ignored) peer_ = endpoint.address().to_string();
  socket_.set_option(tcp::no_delay(true), ignored);
  // The system keeps little of what is not sent yet, so that a write that ends says that the client takes what it gets.
  const int most_unsent = kReadChunk;
  ::setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &most_unsent, sizeof most_unsent);
  std::lock_guard lock(state_->mutex);
  state_->connections.insert(this);
}

Connection::~Connection() {
  state_->unread_bytes -= counted_;
  std::lock_guard lock(state_->mutex);
  state_->connections.erase(this);
  if (state_->connections.empty()) state_->idle.notify_all();
}

void Connection::start() {
  net::dispatch(executor(), [self = shared_from_this()] {
    self->set_deadline(Clock::now() + self->state_->limits.header_timeout);
    self->read_some();
  });
}

void Connection::start_refused() {
  net::dispatch(executor(), [self = shared_from_this()] {
    ++self->state_->refused;
    self->refuse(503, "[http] too many connections (limit " +
                          std::to_string(self->state_->limits.max_connections) + "); try again later");
  });
}

void Connection::drain() {
  net::post(executor(), [self = shared_from_this()] {
    self->keep_alive_ = false;
    if (self->phase_ == Phase::kIdle) self->close();
  });
}

void Connection::refuse(int status, const std::string& message) {
  if (request_id_.empty()) request_id_ = random_id();
  phase_ = Phase::kAnswering;
  ++turn_;
  complete_ = streaming_ = false;
  keep_alive_ = false;
  respond(turn_, state_->handler.error(status, message));
}

void Connection::lose() {
  auto gone = std::move(gone_);
  gone_ = nullptr;
  close();
  if (gone) gone();
}

// Closes so that the client can read the answer: closing with unread input would reset the connection under
// it.
void Connection::linger() {
  beast::error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  if (input_ended_) return close();
  phase_ = Phase::kLingering;
  parser_.reset();
  body_lease_.reset();
  input_.clear();
  set_deadline(Clock::now() + kLingerTime);
  read_some();
}

void Connection::close() {
  phase_ = Phase::kClosed;
  caught_up_ = nullptr;
  beast::error_code ignored;
  timer_.cancel(ignored);
  socket_.close(ignored);
  parser_.reset();
  body_lease_.reset();
  if (!writing_) std::string().swap(sending_);  // else the write under way still points into it
  std::string().swap(pending_);
  count_unread();
}

void Connection::set_deadline(Clock::time_point when) {
  deadline_ = when;
  if (when < armed_) arm_timer(when);  // a later one is found when the timer fires
}

void Connection::arm_timer(Clock::time_point when) {
  armed_ = when;
  timer_.expires_at(when);
  timer_.async_wait([weak = weak_from_this(), when](beast::error_code error) {
    auto self = weak.lock();
    if (error || !self || self->armed_ != when) return;
    self->armed_ = Clock::time_point::max();
    if (self->phase_ == Phase::kClosed) return;
    if (Clock::now() >= self->deadline_)
      self->on_deadline();
    else if (self->deadline_ != Clock::time_point::max())
      self->arm_timer(self->deadline_);
  });
}

void Connection::on_deadline() {
  deadline_ = Clock::time_point::max();
  switch (phase_) {
    case Phase::kHead:
      return refuse(408, "[http] the header took longer than " +
                             std::to_string(state_->limits.header_timeout.count()) + " ms");
    case Phase::kBody:
      return refuse(408, "[http] the body took longer than " +
                             std::to_string(state_->limits.body_timeout.count()) + " ms, or paused for " +
                             std::to_string(state_->limits.stall_timeout.count()) + " ms");
    case Phase::kAnswering:
      return lose();
    case Phase::kIdle:
    case Phase::kLingering:
    case Phase::kClosed:
      return close();
  }
}

}  // namespace tessera::server
