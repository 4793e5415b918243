// A connection's input: bytes become requests, each within its bounds.
#include "server/http_connection.h"

#include <boost/asio/buffer.hpp>

#include "server/ascii_text.h"

namespace tessera::server {
namespace {

constexpr size_t kLingerBytes = 8 << 20;  // what a refused body may still send before it is cut

bool well_formed_id(std::string_view id) {
  if (id.empty() || id.size() > 128) return false;
  for (char c : id)
    if (!(c >= '0' && c <= '9') && !(c >= 'A' && c <= 'Z') && !(c >= 'a' && c <= 'z') && c != '-' &&
        c != '_' && c != '.')
      return false;
  return true;
}

// The path of an origin-form target; what can't be decoded stays as it is and matches no route.
std::string decoded_path(std::string_view target) {
  target = target.substr(0, target.find_first_of("?#"));
  return percent_decoded(target).value_or(std::string(target));
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

void Connection::read_some() {
  if (reading_ || input_ended_ || phase_ == Phase::kClosed) return;
  size_t room = kReadChunk;
  if (phase_ == Phase::kAnswering) room = kReadAhead - std::min(input_.size(), kReadAhead);
  if (room == 0) return;  // the rest waits in the client until this answer is done
  if (input_.size() + room >
      input_.max_size())  // a chunk's header without end: the parser bounds all the rest
    return refuse(400, "[http] malformed request: a chunk header is too long");
  reading_ = true;
  incoming_.resize(kReadChunk);
  socket_.async_read_some(
      net::buffer(incoming_.data(), room),
      [self = shared_from_this()](beast::error_code error, size_t bytes) { self->on_read(error, bytes); });
}

void Connection::on_read(beast::error_code error, size_t bytes) {
  reading_ = false;
  if (phase_ == Phase::kClosed) return;
  if (error) return on_end_of_input();
  input_.commit(net::buffer_copy(input_.prepare(bytes), net::buffer(incoming_.data(), bytes)));
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
  gone_ = caught_up_ = nullptr;
  taken_deadline_ = Clock::time_point::max();
  set_deadline(writing_ ? Clock::now() + state_->limits.write_timeout : Clock::time_point::max());
  state_->handler.handle(make_exchange(shared_from_this(), turn_, std::move(request)));
}

}  // namespace tessera::server
