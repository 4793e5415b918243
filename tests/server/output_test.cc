#include "server/openai_output.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/json.h"
#include "server/api_error.h"
#include "server/echo_engine.h"
#include "server/json_text.h"
#include "server/limits.h"
#include "server/metrics.h"

namespace tessera::server {
namespace {

TEST(JsonText, IsAlwaysValidUtf8) {
  for (const std::string text :
       {"plain", "\"\\\n\t\x01\x7f", "é🙂", "\xff\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\xaf"}) {
    std::string out;
    append_json_string(out, text);
    EXPECT_TRUE(Json::parse(out).ok()) << out;
  }
  std::string out;
  append_json_string(out, "a\xffz");
  EXPECT_EQ(out, "\"a\xEF\xBF\xBDz\"");
}

TEST(JsonText, NumbersReadBack) {
  for (double value : {0.0, -0.25, 1e-9, 123456.789, -1e300}) {
    std::string out;
    append_json_number(out, value);
    EXPECT_EQ(Json::parse(out)->as_double(), value) << out;
  }
  std::string out;
  append_json_number(out, -INFINITY);
  EXPECT_EQ(out, "-9999.0");
}

// An engine whose pieces are single bytes, so that a character is made of several tokens.
class ByteEngine : public Engine {
 public:
  std::pair<RequestId, Status> submit(Request, std::shared_ptr<Listener>) override { return {}; }
  void cancel(RequestId) override {}
  ModelInfo model() const override { return {}; }
  EngineStats stats() const override { return {}; }
  std::pair<std::vector<int32_t>, Status> tokenize(const Request&) override { return {}; }
  std::pair<std::string, Status> detokenize(const std::vector<int32_t>&) override { return {}; }
  std::string piece(int32_t id) override { return std::string(1, static_cast<char>(id)); }
};

TEST(LogprobText, PartsOfCharactersKeepTheirBytes) {
  ByteEngine engine;
  for (bool chat : {true, false}) {
    LogprobText text(chat);
    std::vector<TokenLogprob> tokens(2);
    tokens[0] = {0xC3, -0.5, {{0xC3, -0.5}, {0xC4, -1}}};
    tokens[1] = {0xA9, -INFINITY, {{0xA9, -0.5}, {0xAA, -1}}};
    text.append(engine, tokens, 2);
    auto json = Json::parse(text.text());
    ASSERT_TRUE(json.ok()) << text.text();
    if (!chat) continue;
    const Json& first = json->find("content")->as_array().at(0);
    EXPECT_EQ(first.find("bytes")->dump(), "[195]");
    EXPECT_EQ(first.find("top_logprobs")->as_array().size(), 2u);
  }
}

TEST(Errors, StatusesBecomeHttp) {
  EXPECT_EQ(api_error(invalid_input("x")).status, 400);
  EXPECT_EQ(api_error(too_long("x")).code, "context_length_exceeded");
  EXPECT_EQ(api_error(does_not_fit("x")).status, 400);
  EXPECT_EQ(api_error(unprocessable("x")).status, 422);
  EXPECT_EQ(api_error(unavailable("x")).status, 429);
  EXPECT_EQ(api_error(unavailable("x"), true).status, 503);
  EXPECT_EQ(api_error({StatusCode::kDeadline, "x"}).status, 408);
  EXPECT_EQ(api_error({StatusCode::kCancelled, ""}).status, 499);
  EXPECT_EQ(api_error(internal_error("x")).status, 500);
  EXPECT_TRUE(Json::parse(error_body(api_error(internal_error("\xff\"\n")))).ok());
}

TEST(ClientSlots, GiveBack) {
  auto slots = std::make_shared<ClientSlots>(2);
  auto a = slots->acquire("x"), b = slots->acquire("x");
  EXPECT_TRUE(a && b);
  EXPECT_FALSE(slots->acquire("x"));
  EXPECT_TRUE(slots->acquire("y"));
  a.reset();
  EXPECT_TRUE(slots->acquire("x"));
}

TEST(Metrics, HistogramsCount) {
  Histogram histogram({1, 2});
  for (double value : {0.5, 1.0, 1.5, 9.0}) histogram.observe(value);
  std::string out;
  histogram.render(out, "h", "help", "a=\"b\"");
  EXPECT_NE(out.find("tessera:h_bucket{a=\"b\",le=\"1\"} 2\n"), std::string::npos) << out;
  EXPECT_NE(out.find("le=\"+Inf\"} 4\n"), std::string::npos);
  EXPECT_NE(out.find("tessera:h_sum{a=\"b\"} 12\n"), std::string::npos);
}

TEST(EchoEngine, RefusesUnknownOptions) {
  EXPECT_EQ(parse_echo_options("?step_us=5&fail_after=2")->step_us, 5);
  for (const char* text : {"x", "?x=1", "?step_us", "?step_us=-1", "?step_us=99999999999"})
    EXPECT_FALSE(parse_echo_options(text).ok()) << text;
}

}  // namespace
}  // namespace tessera::server
