#pragma once

// A served echo engine and a client of it, for tests within one process.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>

#include "server/echo_engine.h"
#include "server/log.h"
#include "server/server.h"

namespace tessera::server::testing {

/// A blocking connection to a server on the loopback.
class Client {
 public:
  explicit Client(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~Client() { ::close(socket_); }
  bool send(const std::string& bytes) {
    return connected_ &&
           ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  /// What comes until the server closes, or until `most` bytes are there.
  std::string read(size_t most = SIZE_MAX) {
    std::string text;
    char buffer[16384];
    while (text.size() < most) {
      const ssize_t got = ::recv(socket_, buffer, std::min(sizeof buffer, most - text.size()), 0);
      if (got <= 0) break;
      text.append(buffer, static_cast<size_t>(got));
    }
    return text;
  }

  /// Reads until `part` has come; false when the server closes before.
  bool read_until(const std::string& part) {
    std::string text;
    char buffer[16384];
    while (text.find(part) == std::string::npos) {
      const ssize_t got = ::recv(socket_, buffer, sizeof buffer, 0);
      if (got <= 0) return false;
      text.append(buffer, static_cast<size_t>(got));
    }
    return true;
  }

 private:
  int socket_;
  bool connected_ = false;
};

inline std::string post(const std::string& body, const std::string& headers = "Connection: close\r\n",
                        const std::string& path = "/v1/chat/completions") {
  return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
         headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

inline std::string chat(const std::string& text, const std::string& fields = "") {
  return R"({"messages":[{"role":"user","content":")" + text + "\"}]" + (fields.empty() ? "" : "," + fields) +
         "}";
}

inline size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++found;
  return found;
}

inline std::unique_ptr<Server> serve(const EchoOptions& echo, ServerOptions options = {}) {
  configure_log(LogLevel::kOff, false);
  options.listen.port = 0;
  auto server = Server::open(options);
  EXPECT_TRUE(server.ok()) << server.status().message();
  (*server)->set_engine(make_echo_engine(echo));
  return std::move(*server);
}

}  // namespace tessera::server::testing
