// Requests that name pictures elsewhere: what all of a request's pictures may take together, and who stops paying for a
// client that has gone.
#include <gtest/gtest.h>

#include <future>
#include <mutex>
#include <thread>

#include "tests/server/canned_server.h"
#include "tests/server/http_client.h"

namespace tessera::server {
namespace {

using namespace testing;  // NOLINT: what every test here begins with

const std::string kPng = "\x89PNG\r\n\x1a\n";  // enough of one for the echo engine

// One user message of `pictures` pictures of `elsewhere`.
std::string question(const CannedServer& elsewhere, int pictures) {
  std::string parts;
  for (int i = 0; i < pictures; ++i)
    parts += R"({"type":"image_url","image_url":{"url":"http://pictures.test:)" + elsewhere.port() + "/" +
             std::to_string(i) + R"("}},)";
  return R"({"messages":[{"role":"user","content":[)" + parts + R"({"type":"text","text":"hello"}]}]})";
}

ServerOptions fetching_from(const CannedServer& elsewhere) {
  ServerOptions options;
  options.media.domains = {"pictures.test:" + elsewhere.port()};
  options.media.network.names =
      std::make_shared<NameResolver>([](const std::string&) { return std::vector<std::string>{"127.0.0.1"}; });
  options.media.network.may_connect = [](const std::string&) { return true; };
  return options;
}

TEST(RemotePictures, AreFetchedInOrder) {
  CannedServer elsewhere({ok_answer(kPng), ok_answer(kPng)});
  auto server = serve({.step_us = 0}, fetching_from(elsewhere));
  Client client(server->port());
  ASSERT_TRUE(client.send(post(question(elsewhere, 2))));
  const std::string answer = client.read();
  EXPECT_NE(answer.find("\"image_tokens\":512"), std::string::npos) << answer;
  EXPECT_EQ(elsewhere.request().substr(0, 7), "GET /1 ");
}

TEST(RemotePictures, OneThatIsNoPictureIsUnprocessable) {
  CannedServer elsewhere({ok_answer("<html>")});
  auto server = serve({.step_us = 0}, fetching_from(elsewhere));
  Client client(server->port());
  ASSERT_TRUE(client.send(post(question(elsewhere, 1))));
  EXPECT_EQ(client.read().substr(0, 13), "HTTP/1.1 422 ");
}

TEST(RemotePictures, TogetherHaveTheBoundOfABody) {
  CannedServer elsewhere(std::vector<std::string>(3, ok_answer(kPng + std::string(500, 'x'))));
  ServerOptions options = fetching_from(elsewhere);
  options.listen.limits.max_body_bytes = 1200;
  auto server = serve({.step_us = 0}, options);
  Client client(server->port());
  ASSERT_TRUE(client.send(post(question(elsewhere, 3))));
  const std::string answer = client.read();
  EXPECT_EQ(answer.substr(0, 13), "HTTP/1.1 400 ");
  EXPECT_NE(answer.find("more than 1200 bytes together"), std::string::npos) << answer;
}

TEST(RemotePictures, ShareTheRequestsDeadline) {
  CannedServer silent({"", ""});
  auto server = serve({.step_us = 0}, fetching_from(silent));
  Client client(server->port());
  ASSERT_TRUE(client.send(post(question(silent, 2), "Connection: close\r\nX-Request-Timeout: 0.2\r\n")));
  EXPECT_EQ(client.read().substr(0, 13), "HTTP/1.1 408 ");
  EXPECT_EQ(silent.connections(), 1);
}

// The client goes while its first picture's name is looked up; the second picture is then never asked for.
TEST(RemotePictures, AreNotFetchedForAClientThatHasGone) {
  CannedServer elsewhere({ok_answer(kPng), ok_answer(kPng)});
  ServerOptions options = fetching_from(elsewhere);
  std::promise<void> asked, answer;
  options.media.timeout = std::chrono::minutes(10);
  options.media.network.names =
      std::make_shared<NameResolver>([&, waits = std::make_shared<std::once_flag>()](const std::string&) {
        std::call_once(*waits, [&] {
          asked.set_value();
          answer.get_future().wait();
        });
        return std::vector<std::string>{"127.0.0.1"};
      });
  auto server = serve({.step_us = 0}, options);
  {
    Client client(server->port());
    ASSERT_TRUE(client.send(post(question(elsewhere, 2))));
    asked.get_future().wait();
  }
  for (bool noticed = false; !noticed; std::this_thread::yield()) {
    Client asking(server->port());
    asking.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    noticed = asking.read().find("tessera:client_disconnects_total{model_name=\"echo\"} 1\n") != std::string::npos;
  }
  answer.set_value();
  EXPECT_TRUE(server->drain_and_stop(std::chrono::seconds(20), std::atomic<bool>(false)));
  EXPECT_EQ(elsewhere.connections(), 1);
}

}  // namespace
}  // namespace tessera::server
