// Fetching pictures, over http and https, without a network: names lead to the loopback by a resolver of the test, and
// the address rule takes 127.0.0.1 for public while 127.0.0.2 stays private.
#include <gtest/gtest.h>

#include <future>

#include "server/media.h"
#include "tests/server/canned_server.h"

namespace tessera::server {
namespace {

using testing::CannedServer;
using testing::ok_answer;
using testing::redirect_answer;
using testing::TestAuthority;

constexpr const char* kPrivate = "127.0.0.2";

MediaNetwork loopback_network() {
  MediaNetwork network;
  network.may_connect = [](const std::string& address) { return address == "127.0.0.1"; };
  network.names = std::make_shared<NameResolver>([](const std::string& host) -> std::vector<std::string> {
    if (host == "inside.test") return {kPrivate};
    if (host == "both.test") return {kPrivate, "127.0.0.1"};
    if (host == "nowhere.test") return {};
    return {"127.0.0.1"};
  });
  return network;
}

MediaPolicy policy_for(std::vector<const CannedServer*> servers) {
  MediaPolicy policy;
  for (const CannedServer* server : servers) policy.domains.push_back("*.test:" + server->port());
  policy.network = loopback_network();
  return policy;
}

std::string http(const CannedServer& server, const std::string& host = "pictures.test") {
  return "http://" + host + ":" + server.port() + "/p?q=1";
}
std::string https(const CannedServer& server, const std::string& host = "pictures.test") {
  return "https://" + host + ":" + server.port() + "/p";
}

void expect_refused(const Result<std::string>& loaded, const std::string& words) {
  ASSERT_FALSE(loaded.ok()) << "got " << loaded->size() << " bytes where \"" << words << "\" was expected";
  EXPECT_NE(loaded.status().message().find(words), std::string::npos) << loaded.status().message();
}

TEST(MediaFetch, BringsWhatIsAllowed) {
  CannedServer server({ok_answer("picture"), ok_answer("again")});
  const MediaPolicy policy = policy_for({&server});
  EXPECT_EQ(load_media(http(server), policy).value(), "picture");
  EXPECT_EQ(server.request().substr(0, 18), "GET /p?q=1 HTTP/1.") << server.request();
  EXPECT_NE(server.request().find("Host: pictures.test:" + server.port() + "\r\n"), std::string::npos);
  EXPECT_EQ(load_media(http(server, "both.test"), policy).value(), "again");  // the public one of its addresses
}

TEST(MediaFetch, PrivateAddressesAreNeverConnectedTo) {
  CannedServer inside({ok_answer("secret")}, kPrivate);
  const MediaPolicy policy = policy_for({&inside});
  expect_refused(load_media(http(inside, "inside.test"), policy), "no public address");
  expect_refused(load_media(https(inside, "inside.test"), policy), "no public address");
  expect_refused(load_media(http(inside, "nowhere.test"), policy), "its name could not be resolved");
  EXPECT_EQ(inside.connections(), 0);
  const MediaPolicy production{.domains = {"127.0.0.1:" + inside.port()}};  // its own resolver and rule
  expect_refused(load_media("http://127.0.0.1:" + inside.port() + "/", production), "no public address");
}

TEST(MediaFetch, RedirectsAreFollowedWithinTheirBound) {
  for (int status : {301, 302, 303, 307, 308}) {
    CannedServer server({redirect_answer("/q", status), ok_answer("there")});
    EXPECT_EQ(load_media(http(server), policy_for({&server})).value(), "there") << status;
  }
  CannedServer end({ok_answer("end")});
  CannedServer chain({redirect_answer("/1"), redirect_answer("/2"), redirect_answer("http://other.test:" + end.port() + "/")});
  EXPECT_EQ(load_media(http(chain), policy_for({&chain, &end})).value(), "end");
  CannedServer loop(std::vector<std::string>(5, redirect_answer("/again")));
  expect_refused(load_media(http(loop), policy_for({&loop})), "redirects more than 3 times");
  EXPECT_EQ(loop.connections(), 4);
}

TEST(MediaFetch, EachRedirectIsCheckedAgain) {
  CannedServer inside({ok_answer("secret")}, kPrivate);
  const std::string places[][2] = {{"http://inside.test:" + inside.port() + "/", "no public address"},
                                   {"http://elsewhere.example/x", "are not allowed"},
                                   {"http://pictures.test:1/x", "are not allowed"},
                                   {"file:///etc/passwd", "neither http nor https"},
                                   {"gopher://pictures.test/", "neither http nor https"},
                                   {"//pictures.test/x", "no http(s) URL"},
                                   {"http://u@pictures.test/", "malformed"}};
  for (const auto& [place, words] : places) {
    CannedServer server({redirect_answer(place)});
    expect_refused(load_media(http(server), policy_for({&server, &inside})), words);
  }
  EXPECT_EQ(inside.connections(), 0);
}

TEST(MediaFetch, BodiesHaveABound) {
  const std::string body(5000, 'x');
  CannedServer server({ok_answer(body), "HTTP/1.1 200 OK\r\n\r\n" + body,
                       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n" + body + "\r\n0\r\n\r\n",
                       "HTTP/1.1 200 OK\r\nX: " + std::string(20000, 'x') + "\r\n\r\n"});
  MediaPolicy policy = policy_for({&server});
  policy.max_bytes = 1000;
  for (int i = 0; i < 3; ++i) expect_refused(load_media(http(server), policy), "larger than 1000 bytes");
  expect_refused(load_media(http(server), policy), "header");
}

// One server that says nothing and one whose body never ends: the limit is what ends both.
TEST(MediaFetch, TimeHasABound) {
  const TestAuthority authority;
  const auto identity = authority.issue("pictures.test");
  CannedServer silent({"", CannedServer::kEndless}), silent_tls({"", CannedServer::kEndless}, "127.0.0.1", &identity);
  MediaPolicy policy = policy_for({&silent, &silent_tls});
  policy.network.trusted_pem = authority.pem();
  policy.timeout = std::chrono::milliseconds(300);
  for (int i = 0; i < 2; ++i) {
    EXPECT_FALSE(load_media(http(silent), policy).ok());
    EXPECT_FALSE(load_media(https(silent_tls), policy).ok());
  }
  CannedServer no_tls({""});  // takes the first bytes of the handshake and never answers
  policy.domains = {"*.test:" + no_tls.port()};
  EXPECT_FALSE(load_media(https(no_tls), policy).ok());
}

// A name server that never answers costs a fetch its own time and a bounded number of threads; nobody waits for it.
TEST(MediaFetch, NamesThatAreNeverResolvedAreLeftBehind) {
  std::promise<void> answer;
  CannedServer server({ok_answer("picture"), ok_answer("again")});
  MediaPolicy policy = policy_for({&server});
  policy.network.names = std::make_shared<NameResolver>(
      [answers = answer.get_future().share()](const std::string& host) {
        if (host == "late.test") answers.wait();
        return std::vector<std::string>{"127.0.0.1"};
      },
      2);
  MediaPolicy hurried = policy;
  hurried.timeout = std::chrono::milliseconds(50);
  expect_refused(load_media(http(server, "late.test"), hurried), "its name was not resolved in time");
  EXPECT_EQ(load_media(http(server), policy).value(), "picture");
  expect_refused(load_media(http(server, "late.test"), hurried), "its name was not resolved in time");
  const auto full = load_media(http(server), policy);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.status().code(), StatusCode::kUnavailable) << full.status().message();
  answer.set_value();
  Result<std::string> again = load_media(http(server), policy);
  while (!again.ok() && again.status().code() == StatusCode::kUnavailable) again = load_media(http(server), policy);
  EXPECT_EQ(again.value(), "again");
}

TEST(NameResolver, AsksTheSystem) {
  const auto soon = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  const NameResolver resolver;
  EXPECT_EQ(resolver.addresses("127.0.0.1", soon).value(), std::vector<std::string>{"127.0.0.1"});
  EXPECT_EQ(resolver.addresses("::1", soon).value(), std::vector<std::string>{"::1"});
  const auto found = resolver.addresses("localhost", soon).value();
  EXPECT_TRUE(std::find(found.begin(), found.end(), "127.0.0.1") != found.end() ||
              std::find(found.begin(), found.end(), "::1") != found.end());
}

TEST(MediaFetch, Https) {
  const TestAuthority authority;
  const auto identity = authority.issue("pictures.test");
  CannedServer server({ok_answer("picture"), redirect_answer("/q"), ok_answer(std::string(300'000, 'x'))}, "127.0.0.1",
                      &identity);
  MediaPolicy policy = policy_for({&server});
  policy.network.trusted_pem = authority.pem();
  auto loaded = load_media(https(server), policy);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(*loaded, "picture");
  loaded = load_media(https(server), policy);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->size(), 300'000u);
}

TEST(MediaFetch, HttpsChecksTheCertificate) {
  const TestAuthority authority, other("another authority");
  const auto right = authority.issue("pictures.test"), expired = authority.issue("pictures.test", -60),
             stranger = other.issue("pictures.test");
  const auto refuse = [&](const testing::Identity& identity, const std::string& host, const std::string& trusted) {
    CannedServer server({ok_answer("picture")}, "127.0.0.1", &identity);
    MediaPolicy policy = policy_for({&server});
    policy.network.trusted_pem = trusted;
    expect_refused(load_media(https(server, host), policy), "verify failed");
    EXPECT_EQ(server.request(), "");  // nothing was asked for
  };
  refuse(right, "other.test", authority.pem());
  refuse(expired, "pictures.test", authority.pem());
  refuse(stranger, "pictures.test", authority.pem());
  refuse(right, "pictures.test", "");  // the system's authorities don't know the test's
}

TEST(MediaFetch, RedirectsMayBecomeHttpsAndNeverLoseIt) {
  const TestAuthority authority;
  const auto identity = authority.issue("pictures.test");
  CannedServer plain({ok_answer("leak")});
  CannedServer secure({ok_answer("picture"), redirect_answer(http(plain))}, "127.0.0.1", &identity);
  CannedServer front({redirect_answer(https(secure))});
  MediaPolicy policy = policy_for({&plain, &secure, &front});
  policy.network.trusted_pem = authority.pem();
  EXPECT_EQ(load_media(http(front), policy).value(), "picture");
  expect_refused(load_media(https(secure), policy), "from https to http");
  EXPECT_EQ(plain.connections(), 0);
}

}  // namespace
}  // namespace tessera::server
