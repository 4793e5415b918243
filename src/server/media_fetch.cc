#include "server/media_fetch.h"

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/network_v4.hpp>
#include <boost/asio/ip/network_v6.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>

#include "tessera/version.h"

namespace tessera::server {
namespace {

namespace net = boost::asio;
namespace http = boost::beast::http;
namespace ssl = boost::asio::ssl;
using tcp = net::ip::tcp;
using boost::system::error_code;

bool public_v4(const net::ip::address_v4& address) {
  // IANA's special-purpose registry; what is not globally reachable, and multicast and reserved space.
  static const char* const kBlocks[] = {
      "0.0.0.0/8",     "10.0.0.0/8",      "100.64.0.0/10",  "127.0.0.0/8",    "169.254.0.0/16",
      "172.16.0.0/12", "192.0.0.0/24",    "192.0.2.0/24",   "192.88.99.0/24", "192.168.0.0/16",
      "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",    "240.0.0.0/4"};
  for (const char* block : kBlocks) {
    const auto network = net::ip::make_network_v4(block);
    if ((address.to_uint() & network.netmask().to_uint()) == network.network().to_uint()) return false;
  }
  return true;
}

// Global unicast is 2000::/3; the blocks below it embed other addresses (Teredo, 6to4) or are for
// documentation. Mapped IPv4 (::ffff:0:0/96) and NAT64 (64:ff9b::/96) lie outside of 2000::/3.
bool public_v6(const net::ip::address_v6& address) {
  const auto b = address.to_bytes();
  if ((b[0] & 0xE0) != 0x20) return false;
  if (b[0] == 0x20 && b[1] == 0x01 && b[2] < 0x02) return false;                   // 2001::/23
  if (b[0] == 0x20 && b[1] == 0x01 && b[2] == 0x0d && b[3] == 0xb8) return false;  // 2001:db8::/32
  if (b[0] == 0x20 && b[1] == 0x02) return false;                                  // 2002::/16
  return !(b[0] == 0x3f && b[1] == 0xff && (b[2] & 0xF0) == 0);                    // 3fff::/20
}

bool is_public(const net::ip::address& address) {
  return address.is_v4() ? public_v4(address.to_v4()) : public_v6(address.to_v6());
}

// Runs one asynchronous operation to its end or the deadline. What has not ended then is cut off by closing
// the socket.
class Waiter {
 public:
  Waiter(net::io_context& io, tcp::socket& socket, std::chrono::steady_clock::time_point deadline)
      : io_(io), socket_(socket), deadline_(deadline) {}

  template <class Start>
  error_code operator()(Start start) {
    bool done = false;
    error_code result;
    start([&](error_code error, auto&&...) {
      done = true;
      result = error;
    });
    io_.restart();
    while (!done && io_.run_one_until(deadline_) > 0) {
    }
    if (done) return result;
    error_code ignored;
    socket_.close(ignored);
    io_.restart();
    io_.run();  // the handlers above must run while what they refer to lives
    return net::error::timed_out;
  }

 private:
  net::io_context& io_;
  tcp::socket& socket_;
  std::chrono::steady_clock::time_point deadline_;
};

template <class Stream>
Result<FetchedMedia> exchange(Stream& stream, Waiter& wait, const MediaUrl& url, const MediaPolicy& policy) {
  http::request<http::empty_body> request(http::verb::get, url.target, 11);
  const bool usual_port = url.port == (url.https ? 443 : 80);
  const std::string host = url.host.find(':') == std::string::npos ? url.host : "[" + url.host + "]";
  request.set(http::field::host, usual_port ? host : host + ":" + std::to_string(url.port));
  request.set(http::field::user_agent, std::string("tessera/") + kVersion);
  request.set(http::field::accept, "image/*");
  request.set(http::field::connection, "close");
  const std::string from = "picture from " + url.host;
  if (error_code error = wait([&](auto done) { http::async_write(stream, request, std::move(done)); }))
    return invalid_input(from + ": " + error.message());
  boost::beast::flat_buffer buffer(128 << 10);
  http::response_parser<http::string_body> parser;
  parser.header_limit(16 << 10);
  parser.body_limit(policy.max_bytes);
  const Status too_large = invalid_input(from + " is larger than " + std::to_string(policy.max_bytes) + " bytes");
  // The head first: read in one go, this version of the parser passes over a Content-Length above its bound.
  error_code error = wait([&](auto done) { http::async_read_header(stream, buffer, parser, std::move(done)); });
  if (!error && parser.content_length().value_or(0) > policy.max_bytes) return too_large;
  if (!error) error = wait([&](auto done) { http::async_read(stream, buffer, parser, std::move(done)); });
  if (error == http::error::body_limit) return too_large;
  if (error) return invalid_input(from + ": " + error.message());
  FetchedMedia media;
  const int status = static_cast<int>(parser.get().result_int());
  if (status == 301 || status == 302 || status == 303 || status == 307 || status == 308) {
    media.location = std::string(parser.get()[http::field::location]);
    if (media.location.empty()) return invalid_input(from + ": a redirect without a place");
    return media;
  }
  if (status != 200) return invalid_input(from + ": the host answered " + std::to_string(status));
  media.body = std::move(parser.get().body());
  return media;
}

Result<FetchedMedia> fetch_https(tcp::socket& socket, Waiter& wait, const MediaUrl& url, const MediaPolicy& policy) {
  const std::string from = "picture from " + url.host;
  ssl::context context(ssl::context::tls_client);
  SSL_CTX_set_min_proto_version(context.native_handle(), TLS1_2_VERSION);
  const std::string& trusted = policy.network.trusted_pem;
  error_code error;
  if (trusted.empty())
    context.set_default_verify_paths(error);
  else
    context.add_certificate_authority(net::buffer(trusted), error);
  if (error) return internal_error(from + ": no certificates to trust: " + error.message());
  context.set_verify_mode(ssl::verify_peer);
  ssl::stream<tcp::socket&> stream(socket, context);
  stream.set_verify_callback(ssl::host_name_verification(url.host));
  error_code not_an_address;
  net::ip::make_address(url.host, not_an_address);
  if (not_an_address && !SSL_set_tlsext_host_name(stream.native_handle(), url.host.c_str()))
    return internal_error(from + ": TLS could not be set up");
  error = wait([&](auto done) { stream.async_handshake(ssl::stream_base::client, std::move(done)); });
  if (error) return invalid_input(from + ": " + error.message());
  return exchange(stream, wait, url, policy);
}

}  // namespace

bool is_public_address(const std::string& text) {
  error_code error;
  const auto address = net::ip::make_address(text, error);
  return !error && is_public(address);
}

Result<FetchedMedia> fetch_media(const MediaUrl& url, const MediaPolicy& policy,
                                 std::chrono::steady_clock::time_point deadline) {
  net::io_context io(1);
  tcp::socket socket(io);
  Waiter wait(io, socket, deadline);
  auto addresses = policy.network.names->addresses(url.host, deadline);
  if (!addresses.ok()) return addresses.status().with_context("picture from " + url.host);
  bool connected = false;
  for (const std::string& address : *addresses) {
    // The address that is checked is the one that is connected to: a second look-up could answer differently.
    if (!policy.network.may_connect(address)) continue;
    error_code ignored;
    socket.close(ignored);
    const tcp::endpoint endpoint(net::ip::make_address(address, ignored), static_cast<unsigned short>(url.port));
    connected = !wait([&](auto done) { socket.async_connect(endpoint, std::move(done)); });
    if (connected) break;
  }
  if (!connected) return invalid_input("picture from " + url.host + ": no public address of it could be reached");
  return url.https ? fetch_https(socket, wait, url, policy) : exchange(socket, wait, url, policy);
}

}  // namespace tessera::server
