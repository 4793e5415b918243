#include "pipeline/sampling.h"

#include <gtest/gtest.h>

#include <functional>

namespace tessera {
namespace {

TokenRequest resolve(const Request& request, const char* generation = nullptr) {
  TokenRequest out;
  std::optional<Json> config;
  if (generation) config = *Json::parse(generation);
  resolve_sampling(request, config, 77, out);
  return out;
}

TEST(Sampling, GreedyUnlessAsked) {
  EXPECT_EQ(resolve({}).sampling.temperature, 0);
  EXPECT_EQ(resolve({}, R"({"temperature":0.7,"top_p":0.5})").sampling.temperature, 0);
  EXPECT_EQ(resolve({}, R"({"temperature":0.7,"top_p":0.5})").sampling.top_p, 1);
  Request asked;
  asked.sampling.top_p = 0.9;
  EXPECT_EQ(resolve(asked).sampling.temperature, 1);
}

TEST(Sampling, TheModelsOwnValuesWhereItSamples) {
  const char* generation = R"({"do_sample":true,"temperature":0.5,"top_k":20,"top_p":0.75,"repetition_penalty":1.25})";
  const TokenRequest own = resolve({}, generation);
  EXPECT_EQ(own.sampling.temperature, 0.5f);
  EXPECT_EQ(own.sampling.top_k, 20);
  EXPECT_EQ(own.sampling.top_p, 0.75f);
  EXPECT_EQ(own.repetition_penalty, 1.25);
  Request request;
  request.sampling.temperature = 0;
  EXPECT_EQ(resolve(request, generation).sampling.temperature, 0);
}

TEST(Sampling, NonsenseInTheModelsFileIsNotUsed) {
  const TokenRequest out =
      resolve({}, R"({"do_sample":true,"temperature":-3,"top_k":-5,"top_p":7,"repetition_penalty":0})");
  EXPECT_EQ(out.sampling.temperature, 1);
  EXPECT_EQ(out.sampling.top_k, 0);
  EXPECT_EQ(out.sampling.top_p, 1);
  EXPECT_EQ(out.repetition_penalty, 1);
}

TEST(Sampling, SeedIsTheRequestsOrTheFallback) {
  EXPECT_EQ(resolve({}).sampling.seed, 77u);
  Request request;
  request.sampling.seed = 5;
  EXPECT_EQ(resolve(request).sampling.seed, 5u);
}

TEST(CheckRequest, NamesFieldValueAndRange) {
  const auto message = [](const std::function<void(Request&)>& change) {
    Request request;
    change(request);
    return check_request(request).message();
  };
  EXPECT_EQ(message([](Request&) {}), "");
  EXPECT_EQ(message([](Request& r) { r.sampling.temperature = 2.5; }), "temperature is 2.5; expected 0 to 2");
  EXPECT_NE(message([](Request& r) { r.sampling.top_p = 0; }), "");
  EXPECT_NE(message([](Request& r) { r.n = 17; }), "");
  EXPECT_NE(message([](Request& r) { r.stop.assign(17, "x"); }), "");
  EXPECT_NE(message([](Request& r) { r.stop = {""}; }), "");
  EXPECT_NE(message([](Request& r) { r.logprobs = 21; }), "");
  EXPECT_NE(message([](Request& r) { r.max_new_tokens = 0; }), "");
  EXPECT_NE(message([](Request& r) { r.images.resize(65); }), "");
  EXPECT_NE(message([](Request& r) { r.images.push_back({.max_dynamic_patch = 129}); }), "");
  EXPECT_NE(message([](Request& r) { r.sampling.logit_bias[3] = 101; }), "");
  EXPECT_EQ(message([](Request& r) { r.messages.push_back({"user", {{"a\xff", -1}}}); }),
            "the text is not valid UTF-8 at byte 1");
}

}  // namespace
}  // namespace tessera
