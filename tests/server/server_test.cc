#include "server/server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "server/log.h"
#include "tests/server/http_client.h"
#include "tests/support/fixtures.h"

namespace tessera::server {
namespace {

using namespace testing;  // NOLINT: what every test here begins with

TEST(Server, StreamsAndAnswersOnOneConnection) {
  auto server = serve({.step_us = 0});
  Client client(server->port());
  ASSERT_TRUE(client.send(post(chat("abc", R"("stream":true)"), "") + post(chat("def"))));
  const std::string text = client.read();
  EXPECT_EQ(count(text, "HTTP/1.1 200 OK"), 2u);
  EXPECT_LT(text.find("[DONE]"), text.find("\"content\":\"def\""));
}

// The next request's head comes while an answer is being written, its body only afterwards.
TEST(Server, ABodyMayComeLongAfterAHeadThatCameEarly) {
  auto server = serve({.step_us = 500});
  Client client(server->port());
  const std::string next = post(chat("the next one"));
  const size_t head = next.find("\r\n\r\n") + 4;
  ASSERT_TRUE(client.send(post(chat(std::string(400, 'a')), "")));
  ASSERT_TRUE(client.send(post(chat("ab", R"("stream":true,"ignore_eos":true,"max_tokens":100)"), "")));
  ASSERT_TRUE(client.read_until("\"content\":\"a\""));
  ASSERT_TRUE(client.send(next.substr(0, head)));
  ASSERT_TRUE(client.read_until("[DONE]"));
  ASSERT_TRUE(client.send(next.substr(head)));
  EXPECT_NE(client.read().find("\"content\":\"the next one\""), std::string::npos);
}

TEST(Server, NoEngineIsUnavailable) {
  configure_log(LogLevel::kOff, false);
  ServerOptions options;
  options.listen.port = 0;
  auto server = Server::open(options);
  ASSERT_TRUE(server.ok());
  Client client((*server)->port());
  ASSERT_TRUE(client.send(post(chat("abc"))));
  EXPECT_EQ(client.read().substr(0, 13), "HTTP/1.1 503 ");
}

TEST(Server, DestructionEndsWhatRuns) {
  auto server = serve({.step_us = 1000});
  Client client(server->port());
  ASSERT_TRUE(client.send(post(chat("a", R"("stream":true,"ignore_eos":true)"))));
  EXPECT_FALSE(client.read(1).empty());
  server.reset();
  client.read();  // ends, because the connection does
}

// Many connections, some of which go away in the middle, from several threads at once; for the thread
// sanitizer.
TEST(Server, ManyClientsAtOnce) {
  auto server = serve({.step_us = 200});
  std::atomic<int> answered{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 4; ++round) {
        std::vector<std::unique_ptr<Client>> clients;
        for (int i = 0; i < 16; ++i) {
          clients.push_back(std::make_unique<Client>(server->port()));
          const bool stream = i % 2 == 0;
          clients.back()->send(
              i % 5 == 4 ? post("{broken")
                         : post(chat("hello", stream ? R"("stream":true,"n":2)" : R"("logprobs":true)")));
        }
        for (int i = 0; i < 16; ++i) {
          if ((i + t) % 3 == 0) continue;  // goes without reading
          const std::string text = clients[static_cast<size_t>(i)]->read();
          const bool good = i % 5 == 4   ? text.find(" 400 ") != std::string::npos
                            : i % 2 == 0 ? text.find("[DONE]") != std::string::npos
                                         : text.find("\"content\":\"hello\"") != std::string::npos;
          ++(good ? answered : wrong);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(answered, 100);
  EXPECT_TRUE(server->drain_and_stop(std::chrono::seconds(20), std::atomic<bool>(false)));
}

// Every stream is under way before the first ends; a few threads carry all.
TEST(Server, Streams256AtOnce) {
  auto server = serve({.step_us = 5000});
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 256; ++i) {
    clients.push_back(std::make_unique<Client>(server->port()));
    ASSERT_TRUE(clients.back()->send(post(chat("abc", R"("stream":true,"ignore_eos":true)"))));
  }
  for (auto& client : clients) client->read_until("\"content\":\"c\"");
  Client asking(server->port());
  asking.send("GET /stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  EXPECT_NE(asking.read().find("\"running\":256"), std::string::npos);
  clients.clear();  // all go at once, in the middle
  EXPECT_TRUE(server->drain_and_stop(std::chrono::seconds(20), std::atomic<bool>(false)));
}

// A client that reads late loses nothing: what it missed comes gathered in few events, so that its memory stays small.
TEST(Server, LateReadersGetTheirTextGathered) {
  constexpr size_t kTokens = 300'000;  // sixty megabytes as events of one token
  auto server = serve({.session_len = 1 << 20, .step_us = 0});
  Client late(server->port());
  ASSERT_TRUE(late.send(post(chat("z", R"("stream":true,"ignore_eos":true,"max_tokens":300000)"))));
  for (bool over = false; !over; std::this_thread::sleep_for(std::chrono::milliseconds(5))) {
    Client asking(server->port());
    asking.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    over = asking.read().find("request_success_total{model_name=\"echo\",finished_reason=\"length\"} 1\n") !=
           std::string::npos;
  }
  const std::string text = late.read();
  EXPECT_NE(text.find("data: [DONE]"), std::string::npos);
  EXPECT_GE(count(text, "z"), kTokens);
  EXPECT_LT(text.size(), 20u << 20);
}

constexpr size_t kLongAnswer = 14 << 20;  // bytes at least; more than the buffers of a connection's two ends take

std::string ask_for_a_long_answer() {
  std::string text;
  for (int i = 0; i < 1 << 20; ++i) text += "\U0001D11E";  // 119070, and itself in quotes: 14 bytes
  return post(R"({"prompt":")" + text + R"(","return_token_strs":true})", "Connection: close\r\n", "/tokenize");
}

TEST(Server, AnswersThatNobodyTakesHaveABoundTogether) {
  ServerOptions options;
  options.listen.limits.max_all_unread_bytes = kLongAnswer * 3 / 2;
  auto server = serve({.step_us = 0}, options);
  auto first = std::make_unique<Client>(server->port());
  ASSERT_TRUE(first->send(ask_for_a_long_answer()));
  EXPECT_EQ(first->read(12), "HTTP/1.1 200");  // and no more than this
  Client second(server->port());
  ASSERT_TRUE(second.send(ask_for_a_long_answer()));
  EXPECT_NE(second.read().find("too many answers are not taken"), std::string::npos);
  Client small(server->port());
  ASSERT_TRUE(small.send(post(chat("abc"))));
  EXPECT_EQ(small.read(12), "HTTP/1.1 200");
  first.reset();
  for (bool again = false; !again; std::this_thread::yield()) {  // the server hears of it soon
    Client third(server->port());
    ASSERT_TRUE(third.send(ask_for_a_long_answer()));
    again = third.read().size() > kLongAnswer;
  }
}

// A client that takes a little now and then would hold its answer for ever: the whole of it has a time, too.
TEST(Server, AnAnswerMustBeTakenWhole) {
  ServerOptions options;
  options.listen.limits.write_timeout = std::chrono::milliseconds(250);  // for each MiB: 4 MiB a second
  auto server = serve({.step_us = 0}, options);
  Client slow(server->port());
  ASSERT_TRUE(slow.send(ask_for_a_long_answer()));
  size_t taken = 0;
  for (std::string some = slow.read(16384); !some.empty(); some = slow.read(16384)) {
    taken += some.size();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // less than one a second
  }
  EXPECT_LT(taken, kLongAnswer);
  Client quick(server->port());
  ASSERT_TRUE(quick.send(post(chat("abc"))));
  EXPECT_EQ(quick.read(12), "HTTP/1.1 200");
}

TEST(Server, KeysAreReadAgain) {
  const std::string path = tessera::testing::scratch_dir() + "/keys";
  std::ofstream(path) << "first-key-of-all\n";
  ServerOptions options;
  options.api_key_file = path;
  auto server = serve({.step_us = 0}, options);
  auto status = [&](const std::string& key) {
    Client client(server->port());
    client.send("GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + key +
                "\r\n\r\n");
    return client.read().substr(9, 3);
  };
  EXPECT_EQ(status("first-key-of-all"), "200");
  EXPECT_EQ(status("second-key-of-all"), "401");
  std::ofstream(path) << "second-key-of-all\n";
  EXPECT_TRUE(server->reload_keys().ok());
  EXPECT_EQ(status("first-key-of-all"), "401");
  EXPECT_EQ(status("second-key-of-all"), "200");
  std::ofstream(path) << "# none\n";
  EXPECT_FALSE(server->reload_keys().ok());
  EXPECT_EQ(status("second-key-of-all"), "200");
}

}  // namespace
}  // namespace tessera::server
