// A connection's output: answers and streams become bytes, never more than the client may leave unread.
#include "server/http_connection.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <cstdio>
#include <ctime>
#include <utility>

namespace tessera::server {
namespace {

constexpr size_t kTakenInTime = 1 << 20;  // of a whole answer, in one write_timeout

std::string http_date() {
  char text[64];
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &utc);
  return text;
}

}  // namespace

// A whole buffer counts until it is sent: its memory is held as long.
void Connection::count_unread() {
  const size_t now = pending_.size() + sending_.size();
  state_->unread_bytes += now - counted_;  // modulo 2^64, so that a difference below zero is right, too
  counted_ = now;
}

// A client with little unread always has, so that it hears of errors and pays for nobody else.
bool Connection::has_room_for(size_t bytes) const {
  return counted_ + bytes <= kReadChunk || state_->unread_bytes + bytes <= state_->limits.max_all_unread_bytes;
}

// From here on the client sets the pace. Each byte in its turn is not enough: the whole must be taken in time.
void Connection::finish_answer() {
  complete_ = true;
  gone_ = nullptr;
  caught_up_ = nullptr;
  taken_deadline_ = Clock::now() + state_->limits.write_timeout * static_cast<int64_t>(1 + unread() / kTakenInTime);
  write_some();
}

void Connection::queue_head(const HttpResponse& response, bool chunked) {
  std::string& out = pending_;
  out += http10_ ? "HTTP/1.0 " : "HTTP/1.1 ";
  out += std::to_string(response.status) + ' ' + reason_phrase(response.status) + "\r\n";
  out += "Date: " + http_date() + "\r\nX-Request-Id: " + request_id_ + "\r\n";
  if (!response.content_type.empty()) out += "Content-Type: " + response.content_type + "\r\n";
  for (const auto& [name, value] : response.headers) out += name + ": " + value + "\r\n";
  if (chunked && !http10_)
    out += "Transfer-Encoding: chunked\r\n";
  else if (!chunked && response.status != 204)
    out += "Content-Length: " + std::to_string(response.body.size()) + "\r\n";
  if (chunked && http10_) keep_alive_ = false;
  out += keep_alive_ ? (http10_ ? "Connection: keep-alive\r\n\r\n" : "\r\n") : "Connection: close\r\n\r\n";
}

void Connection::respond(uint64_t turn, HttpResponse response) {
  if (!current(turn) || streaming_) return;
  if (state_->draining) keep_alive_ = false;
  if (!has_room_for(response.body.size()))
    response = state_->handler.error(503, "[http] too many answers are not taken by their clients; try again later");
  queue_head(response, false);
  if (!head_only_ && response.status != 204) pending_ += response.body;
  finish_answer();
}

void Connection::begin_stream(uint64_t turn, HttpResponse head) {
  if (!current(turn) || streaming_) return;
  if (state_->draining) keep_alive_ = false;
  streaming_ = true;
  queue_head(head, true);
  write_some();
}

void Connection::write(uint64_t turn, std::string bytes) {
  if (!current(turn) || !streaming_ || bytes.empty()) return;
  // The engine does not wait for a client that does not read. What is unread counts, not what comes now: one large piece
  // must not cut off a client that has taken all before it.
  if (unread() > state_->limits.max_unread_bytes || !has_room_for(bytes.size())) return lose();
  if (http10_) {
    pending_ += bytes;
  } else {
    char size[24];
    std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
    pending_ += size;
    pending_ += bytes;
    pending_ += "\r\n";
  }
  write_some();
}

void Connection::end_stream(uint64_t turn) {
  if (!current(turn) || !streaming_) return;
  if (!http10_) pending_ += "0\r\n\r\n";
  finish_answer();
}

void Connection::on_caught_up(uint64_t turn, std::function<void()> caught_up) {
  if (!current(turn)) return;
  caught_up_ = std::move(caught_up);
  if (!writing_) write_some();
}

void Connection::abort(uint64_t turn) {
  if (!current(turn)) return;
  gone_ = nullptr;
  close();
}

void Connection::on_close(uint64_t turn, std::function<void()> gone) {
  if (current(turn))
    gone_ = std::move(gone);
  else if (turn != turn_ || phase_ == Phase::kClosed)
    gone();
}

void Connection::write_some() {
  count_unread();
  if (writing_ || phase_ == Phase::kClosed) return;
  if (sent_ == sending_.size()) {
    sending_.clear();
    sent_ = 0;
    std::swap(sending_, pending_);
    count_unread();
  }
  if (sending_.empty()) {
    if (phase_ == Phase::kAnswering && complete_) return on_answered();
    if (auto caught_up = std::exchange(caught_up_, nullptr)) caught_up();
    return;
  }
  writing_ = true;
  if (phase_ == Phase::kAnswering) set_deadline(std::min(taken_deadline_, Clock::now() + state_->limits.write_timeout));
  socket_.async_write_some(
      net::buffer(sending_.data() + sent_, sending_.size() - sent_),
      [self = shared_from_this()](beast::error_code error, size_t bytes) { self->on_written(error, bytes); });
}

void Connection::on_written(beast::error_code error, size_t bytes) {
  writing_ = false;
  if (phase_ == Phase::kClosed) return;
  if (error) return lose();
  sent_ += bytes;
  if (phase_ == Phase::kAnswering) set_deadline(Clock::time_point::max());
  write_some();
}

void Connection::on_answered() {
  if (!keep_alive_) return linger();
  if (sending_.capacity() > kReadChunk) std::string().swap(sending_);
  if (pending_.capacity() > kReadChunk) std::string().swap(pending_);
  sent_ = 0;
  phase_ = Phase::kIdle;
  set_deadline(Clock::now() + state_->limits.idle_timeout);
  // Not a plain call: a client that pipelines a thousand requests must not make a stack of a thousand
  // answers.
  net::post(executor(), [self = shared_from_this()] {
    if (self->phase_ != Phase::kIdle) return;
    self->parse();
    self->read_some();
  });
}

}  // namespace tessera::server
