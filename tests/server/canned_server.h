#pragma once

// A server of the loopback that says what a test tells it to, over plain TCP or TLS.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/test_authority.h"

namespace tessera::server::testing {

/// Answers each connection with the next of `answers`; an empty one says nothing until the client goes, kEndless
/// never ends its body.
class CannedServer {
 public:
  static constexpr const char* kEndless = "endless";

  explicit CannedServer(std::vector<std::string> answers, const char* address = "127.0.0.1",
                        const Identity* identity = nullptr)
      : answers_(std::move(answers)) {
    if (identity) {
      tls_ = SSL_CTX_new(TLS_server_method());
      SSL_CTX_use_certificate(tls_, identity->certificate.get());
      SSL_CTX_use_PrivateKey(tls_, identity->key.get());
    }
    ::signal(SIGPIPE, SIG_IGN);  // what TLS writes to a client that has gone
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in where{};
    where.sin_family = AF_INET;
    ::inet_pton(AF_INET, address, &where.sin_addr);
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&where), sizeof where), 0);
    EXPECT_EQ(::listen(listener_, 8), 0);
    socklen_t size = sizeof where;
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&where), &size);
    port_ = ntohs(where.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~CannedServer() {
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
    if (tls_) SSL_CTX_free(tls_);
  }

  std::string port() const { return std::to_string(port_); }
  int connections() const { return connections_; }
  /// The last request's head.
  std::string request() const {
    std::lock_guard lock(mutex_);
    return request_;
  }

 private:
  void run() {
    for (const std::string& answer : answers_) {
      const int client = ::accept(listener_, nullptr, nullptr);
      if (client < 0) return;
      ++connections_;
      if (tls_)
        serve_tls(client, answer);
      else
        serve(answer, [&](char* to, size_t most) { return ::read(client, to, most); },
              [&](const char* from, size_t size) { return ::send(client, from, size, MSG_NOSIGNAL); });
      ::close(client);
    }
  }

  void serve_tls(int client, const std::string& answer) {
    SSL* stream = SSL_new(tls_);
    SSL_set_fd(stream, client);
    if (SSL_accept(stream) == 1) {
      serve(answer, [&](char* to, size_t most) { return SSL_read(stream, to, static_cast<int>(most)); },
            [&](const char* from, size_t size) { return SSL_write(stream, from, static_cast<int>(size)); });
      SSL_shutdown(stream);
    }
    SSL_free(stream);
  }

  template <class Read, class Write>
  void serve(const std::string& answer, Read read, Write write) {
    char buffer[4096];
    const auto got = read(buffer, sizeof buffer);
    {
      std::lock_guard lock(mutex_);
      request_.assign(buffer, static_cast<size_t>(std::max<long>(got, 0)));
    }
    if (answer == kEndless) {
      const std::string head = "HTTP/1.1 200 OK\r\n\r\n";
      for (auto sent = write(head.data(), head.size()); sent > 0; sent = write("x", 1)) ::usleep(1000);
    } else if (answer.empty()) {
      (void)!read(buffer, sizeof buffer);
    } else {
      (void)!write(answer.data(), answer.size());
    }
  }

  std::vector<std::string> answers_;
  int listener_ = -1, port_ = 0;
  SSL_CTX* tls_ = nullptr;
  std::atomic<int> connections_{0};
  mutable std::mutex mutex_;
  std::string request_;
  std::thread thread_;
};

inline std::string ok_answer(const std::string& body) {
  return "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}
inline std::string redirect_answer(const std::string& location, int status = 302) {
  return "HTTP/1.1 " + std::to_string(status) + " Moved\r\nContent-Length: 0\r\nLocation: " + location + "\r\n\r\n";
}

}  // namespace tessera::server::testing
