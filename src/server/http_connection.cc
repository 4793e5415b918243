#include "server/http_connection.h"

#include <boost/asio/buffer.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>
#include <cstdio>
#include <ctime>

namespace tessera::server {
namespace {

constexpr size_t kReadChunk = 64 << 10;
constexpr size_t kReadAhead = 32 << 10;   // of later requests, while one is being answered
constexpr size_t kLingerBytes = 8 << 20;  // what a refused body may still send before it is cut
constexpr auto kLingerTime = std::chrono::seconds(2);

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

std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return lower;
}

bool well_formed_id(std::string_view id) {
  if (id.empty() || id.size() > 128) return false;
  for (char c : id)
    if (!(c >= '0' && c <= '9') && !(c >= 'A' && c <= 'Z') && !(c >= 'a' && c <= 'z') && c != '-' &&
        c != '_' && c != '.')
      return false;
  return true;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The path of an origin-form target; what can't be decoded stays as it is and matches no route.
std::string decoded_path(std::string_view target) {
  target = target.substr(0, target.find_first_of("?#"));
  std::string path;
  for (size_t i = 0; i < target.size(); ++i) {
    const bool escape = target[i] == '%' && i + 2 < target.size() && hex_digit(target[i + 1]) >= 0 &&
                        hex_digit(target[i + 2]) >= 0;
    path += escape ? static_cast<char>(hex_digit(target[i + 1]) * 16 + hex_digit(target[i + 2])) : target[i];
    if (escape) i += 2;
  }
  return path;
}

std::string http_date() {
  char text[64];
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &utc);
  return text;
}

}  // namespace

std::shared_ptr<void> ListenerState::lease_body(const std::shared_ptr<ListenerState>& state, uint64_t bytes) {
  uint64_t held = state->body_bytes.load();
  do {
    if (bytes > state->limits.max_all_bodies_bytes || held > state->limits.max_all_bodies_bytes - bytes)
      return nullptr;
  } while (!state->body_bytes.compare_exchange_weak(held, held + bytes));
  return std::shared_ptr<void>(state.get(), [state, bytes](void*) { state->body_bytes -= bytes; });
}

Connection::Connection(tcp::socket socket, std::shared_ptr<ListenerState> state)
    : socket_(std::move(socket)),
      state_(std::move(state)),
      timer_(socket_.get_executor()),
      input_(std::max(state_->limits.max_header_bytes, kReadAhead) + 2 * kReadChunk) {
  beast::error_code ignored;
  const auto endpoint = socket_.remote_endpoint(ignored);
  if (!ignored) peer_ = endpoint.address().to_string();
  socket_.set_option(tcp::no_delay(true), ignored);
  std::lock_guard lock(state_->mutex);
  state_->connections.insert(this);
}

Connection::~Connection() {
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

// --- input ---

void Connection::read_some() {
  if (reading_ || input_ended_ || phase_ == Phase::kClosed) return;
  size_t room = kReadChunk;
  if (phase_ == Phase::kAnswering) room = kReadAhead - std::min(input_.size(), kReadAhead);
  if (room == 0) return;  // the rest waits in the client until this answer is done
  if (input_.size() + room >
      input_.max_size())  // a chunk's header without end: the parser bounds all the rest
    return refuse(400, "[http] malformed request: a chunk header is too long");
  reading_ = true;
  socket_.async_read_some(
      input_.prepare(room),
      [self = shared_from_this()](beast::error_code error, size_t bytes) { self->on_read(error, bytes); });
}

void Connection::on_read(beast::error_code error, size_t bytes) {
  reading_ = false;
  if (phase_ == Phase::kClosed) return;
  if (error) return on_end_of_input();
  input_.commit(bytes);
  if (phase_ == Phase::kLingering) {
    lingered_ += bytes;
    input_.clear();
    if (lingered_ > kLingerBytes) return close();
  } else if (phase_ != Phase::kAnswering) {
    parse();
  }
  read_some();
}

void Connection::on_end_of_input() {
  input_ended_ = true;
  if (phase_ != Phase::kAnswering) return close();
  keep_alive_ = false;
  if (!complete_) lose();  // a complete answer may still be on its way to a client that has closed its half
}

void Connection::parse() {
  while ((phase_ == Phase::kIdle || phase_ == Phase::kHead || phase_ == Phase::kBody) && input_.size() > 0)
    if (!parse_step()) return;
}

// Feeds the parser once; false when it needs more input or the request has been refused.
bool Connection::parse_step() {
  if (phase_ == Phase::kIdle) {
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(state_->limits.max_header_bytes));
    parser_->body_limit(state_->limits.max_body_bytes);
    phase_ = Phase::kHead;
    set_deadline(Clock::now() + state_->limits.header_timeout);
  }
  beast::error_code error;
  const size_t used = parser_->put(input_.data(), error);
  input_.consume(used);
  if (error && error != http::error::need_more) {
    if (error == http::error::body_limit)
      refuse(413, "[http] the body is larger than " + std::to_string(state_->limits.max_body_bytes) +
                      " bytes; send less or raise --max-body-bytes");
    else if (error == http::error::header_limit)
      refuse(431, "[http] the header is larger than " + std::to_string(state_->limits.max_header_bytes) +
                      " bytes");
    else
      refuse(400, "[http] malformed request: " + error.message());
    return false;
  }
  if (phase_ == Phase::kHead && parser_->is_header_done()) {
    if (!on_head()) return false;
  } else if (phase_ == Phase::kBody) {
    if (!account_body()) return false;
    set_deadline(std::min(body_deadline_, Clock::now() + state_->limits.stall_timeout));
  }
  if (parser_->is_done()) {
    on_request();
    return false;
  }
  return !error && used > 0;
}

bool Connection::on_head() {
  const auto& message = parser_->get();
  HttpRequest head = take_head();
  request_id_ = head.id;
  http10_ = message.version() < 11;
  head_only_ = message.method() == http::verb::head;
  keep_alive_ = message.keep_alive() && !state_->draining;
  phase_ = Phase::kBody;
  body_deadline_ = Clock::now() + state_->limits.body_timeout;
  set_deadline(std::min(body_deadline_, Clock::now() + state_->limits.stall_timeout));
  parser_->eager(true);
  if (message.version() != 10 && message.version() != 11) {
    refuse(400, "[http] HTTP/1.0 or HTTP/1.1 is spoken here");
    return false;
  }
  if (auto refusal = state_->handler.check_head(head)) {
    const bool whole = parser_->is_done();  // nothing follows the head, so the connection may live on
    phase_ = Phase::kAnswering;
    ++turn_;
    complete_ = streaming_ = false;
    keep_alive_ = keep_alive_ && whole;
    respond(turn_, std::move(*refusal));
    return false;
  }
  if (const auto length = parser_->content_length()) {
    body_lease_ = ListenerState::lease_body(state_, *length);
    body_leased_ = *length;
    if (!body_lease_) {
      refuse(503, "[http] too many bodies are being received; try again later");
      return false;
    }
  }
  if (!http10_ && beast::iequals(message[http::field::expect], "100-continue") && !parser_->is_done()) {
    pending_ += "HTTP/1.1 100 Continue\r\n\r\n";
    write_some();
  }
  return true;
}

// A chunked body has no length in front: its lease grows as it comes, doubling so that the number of leases
// is small.
bool Connection::account_body() {
  const uint64_t held = parser_->get().body().size();
  if (held <= body_leased_) return true;
  const uint64_t wanted =
      std::min(std::max<uint64_t>(held * 2, kReadChunk), state_->limits.max_body_bytes + kReadChunk);
  auto more = ListenerState::lease_body(state_, wanted - body_leased_);
  if (!more) {
    refuse(503, "[http] too many bodies are being received; try again later");
    return false;
  }
  body_lease_ = std::make_shared<std::pair<std::shared_ptr<void>, std::shared_ptr<void>>>(
      std::move(body_lease_), std::move(more));
  body_leased_ = wanted;
  return true;
}

HttpRequest Connection::take_head() const {
  const auto& message = parser_->get();
  HttpRequest request;
  request.method = std::string(message.method_string());
  request.path = decoded_path(std::string_view(message.target().data(), message.target().size()));
  request.peer = peer_;
  for (const auto& field : message)
    request.headers.emplace_back(lower_case({field.name_string().data(), field.name_string().size()}),
                                 std::string(field.value()));
  const std::string* id = request.header("x-request-id");
  request.id = id && well_formed_id(*id) ? *id : random_id();
  return request;
}

void Connection::on_request() {
  HttpRequest request = take_head();
  request.id = request_id_;
  request.body = std::move(parser_->get().body());
  request.body_lease = std::move(body_lease_);
  body_leased_ = 0;
  parser_.reset();
  phase_ = Phase::kAnswering;
  ++turn_;
  complete_ = streaming_ = false;
  gone_ = nullptr;
  set_deadline(writing_ ? Clock::now() + state_->limits.write_timeout : Clock::time_point::max());
  state_->handler.handle(std::make_shared<ConnectionExchange>(shared_from_this(), turn_, std::move(request)));
}

void Connection::refuse(int status, const std::string& message) {
  if (request_id_.empty()) request_id_ = random_id();
  phase_ = Phase::kAnswering;
  ++turn_;
  complete_ = streaming_ = false;
  keep_alive_ = false;
  respond(turn_, state_->handler.error(status, message));
}

// --- output ---

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
  queue_head(response, false);
  if (!head_only_ && response.status != 204) pending_ += response.body;
  complete_ = true;
  gone_ = nullptr;
  write_some();
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
  if (pending_.size() + sending_.size() - sent_ + bytes.size() > state_->limits.max_unread_bytes) {
    lose();  // the engine does not wait for a client that does not read
    return;
  }
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
  complete_ = true;
  gone_ = nullptr;
  write_some();
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
  if (writing_ || phase_ == Phase::kClosed) return;
  if (sent_ == sending_.size()) {
    sending_.clear();
    sent_ = 0;
    std::swap(sending_, pending_);
  }
  if (sending_.empty()) {
    if (phase_ == Phase::kAnswering && complete_) on_answered();
    return;
  }
  writing_ = true;
  if (phase_ == Phase::kAnswering) set_deadline(Clock::now() + state_->limits.write_timeout);
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

// --- ends ---

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
  beast::error_code ignored;
  timer_.cancel(ignored);
  socket_.close(ignored);
  parser_.reset();
  body_lease_.reset();
  if (!writing_) std::string().swap(sending_);  // else the write under way still points into it
  std::string().swap(pending_);
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
