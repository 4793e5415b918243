#include "server/media.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/support/fixtures.h"

namespace tessera::server {
namespace {
namespace fs = std::filesystem;

TEST(Media, KnowsPublicAddresses) {
  for (const char* address : {"8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "2a00:1450:4001::1"})
    EXPECT_TRUE(is_public_address(address)) << address;
  for (const char* address : {"127.0.0.1",
                              "10.1.2.3",
                              "172.16.0.1",
                              "172.31.255.255",
                              "192.168.1.1",
                              "169.254.169.254",
                              "100.64.0.1",
                              "0.0.0.0",
                              "224.0.0.1",
                              "255.255.255.255",
                              "198.18.0.1",
                              "192.0.2.1",
                              "::1",
                              "::",
                              "fe80::1",
                              "fc00::1",
                              "fd12::1",
                              "::ffff:127.0.0.1",
                              "::ffff:8.8.8.8",
                              "64:ff9b::7f00:1",
                              "2002:7f00:1::",
                              "2001::1",
                              "2001:db8::1",
                              "ff02::1",
                              "3fff::1",
                              "nonsense",
                              ""})
    EXPECT_FALSE(is_public_address(address)) << address;
}

TEST(Media, TakesUrlsApart) {
  auto url = parse_media_url("HTTPS://Example.COM:8443/a/b?c=d#e");
  ASSERT_TRUE(url.ok());
  EXPECT_TRUE(url->https);
  EXPECT_EQ(url->host, "example.com");
  EXPECT_EQ(url->port, 8443);
  EXPECT_EQ(url->target, "/a/b?c=d");
  EXPECT_EQ(parse_media_url("http://h?x")->target, "/?x");
  for (const char* text :
       {"ftp://h/", "http://", "http:///x", "http://u@h/", "http://u:p@h/", "http://h:0/", "http://h:99999/",
        "http://h:8x/", "http://h\\@evil/", "http://h/\r\nX: y", "http://h /", "http://[::1", "h/x"})
    EXPECT_FALSE(parse_media_url(text).ok()) << text;
}

TEST(Media, DomainsAreExact) {
  auto allowed = [](const char* url, std::vector<std::string> domains) {
    return domain_allowed(parse_media_url(url).value(), domains);
  };
  EXPECT_TRUE(allowed("https://a.org/x", {"a.org"}));
  EXPECT_FALSE(allowed("https://a.org.evil.net/x", {"a.org"}));
  EXPECT_FALSE(allowed("https://evila.org/x", {"a.org"}));
  EXPECT_FALSE(allowed("https://sub.a.org/x", {"a.org"}));
  EXPECT_TRUE(allowed("https://sub.a.org/x", {"*.a.org"}));
  EXPECT_FALSE(allowed("https://evila.org/x", {"*.a.org"}));
  EXPECT_FALSE(allowed("http://a.org:22/x", {"a.org"}));
  EXPECT_TRUE(allowed("http://a.org:8080/x", {"a.org:8080"}));
}

TEST(Media, NothingIsAllowedByDefault) {
  for (const char* url :
       {"http://example.org/a.png", "https://example.org/a.png", "file:///etc/hostname", "gopher://x/", "x"})
    EXPECT_FALSE(load_media(url, {}).ok()) << url;
}

TEST(Media, LocalFilesStayBelowTheirDirectory) {
  const fs::path root = testing::scratch_dir();
  fs::create_directories(root / "in");
  std::ofstream(root / "in/a.png") << "picture";
  std::ofstream(root / "secret") << "secret";
  fs::create_symlink(root / "secret", root / "in/link");
  fs::create_symlink(root, root / "in/up");
  MediaPolicy policy{.local_path = (root / "in").string()};
  ASSERT_TRUE(prepare_media_policy(&policy).ok());
  const std::string base = "file://" + policy.local_path;
  EXPECT_EQ(load_media(base + "/a.png", policy).value(), "picture");
  EXPECT_EQ(load_media(base + "/%61.png", policy).value(), "picture");
  for (const char* name :
       {"/link", "/up/secret", "/../secret", "/%2e%2e/secret", "", "/", "/absent", "/a.png%00", "/a.png%"})
    EXPECT_FALSE(load_media(base + name, policy).ok()) << name;
}

// A server that answers each connection with the next of `answers`.
class CannedServer {
 public:
  explicit CannedServer(std::vector<std::string> answers) : answers_(std::move(answers)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_, 8), 0);
    socklen_t size = sizeof address;
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~CannedServer() {
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/p"; }
  std::string domain() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  void run() {
    for (const std::string& answer : answers_) {
      const int client = ::accept(listener_, nullptr, nullptr);
      if (client < 0) return;
      char buffer[4096];
      (void)!::read(client, buffer, sizeof buffer);
      (void)!::send(client, answer.data(), answer.size(), MSG_NOSIGNAL);
      if (answer.empty()) (void)!::read(client, buffer, sizeof buffer);  // says nothing until the client goes
      ::close(client);
    }
  }

  std::vector<std::string> answers_;
  int listener_ = -1, port_ = 0;
  std::thread thread_;
};

std::string ok_answer(const std::string& body) {
  return "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

TEST(Media, FetchesWhatIsAllowed) {
  CannedServer server({ok_answer("picture")});
  const MediaPolicy policy{.domains = {server.domain()}, .allow_private_addresses = true};
  auto bytes = load_media(server.url(), policy);
  ASSERT_TRUE(bytes.ok()) << bytes.status().message();
  EXPECT_EQ(*bytes, "picture");
}

TEST(Media, PrivateAddressesAreRefusedAtConnect) {
  CannedServer server({ok_answer("picture")});
  auto bytes = load_media(server.url(), {.domains = {server.domain()}});
  ASSERT_FALSE(bytes.ok());
  EXPECT_NE(bytes.status().message().find("no public address"), std::string::npos);
}

TEST(Media, RedirectsAreCheckedAgain) {
  const std::string to = "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: ";
  CannedServer server({to + "/q\r\n\r\n", ok_answer("there"), to + "http://other.example/x\r\n\r\n",
                       to + "file:///etc/passwd\r\n\r\n", to + "//other.example/x\r\n\r\n", to + "/1\r\n\r\n",
                       to + "/2\r\n\r\n", to + "/3\r\n\r\n", to + "/4\r\n\r\n"});
  const MediaPolicy policy{.domains = {server.domain()}, .max_redirects = 3, .allow_private_addresses = true};
  EXPECT_EQ(load_media(server.url(), policy).value(), "there");
  for (int i = 0; i < 4; ++i) EXPECT_FALSE(load_media(server.url(), policy).ok()) << i;
}

TEST(Media, SizesAndTimesAreBounded) {
  CannedServer server(
      {ok_answer(std::string(5000, 'x')), "HTTP/1.1 200 OK\r\n\r\n" + std::string(5000, 'x'), ""});
  const MediaPolicy policy{.domains = {server.domain()},
                           .max_bytes = 1000,
                           .timeout = std::chrono::milliseconds(300),
                           .allow_private_addresses = true};
  for (int i = 0; i < 3; ++i) {
    auto bytes = load_media(server.url(), policy);
    EXPECT_FALSE(bytes.ok()) << i << ": " << (bytes.ok() ? bytes->size() : 0);
  }
}

}  // namespace
}  // namespace tessera::server
