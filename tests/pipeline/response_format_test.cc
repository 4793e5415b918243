// Answers kept to JSON, whole: request, grammar, masks, sampling, text.
#include <gtest/gtest.h>

#include "core/json.h"
#include "tessera/options.h"
#include "tests/support/engine_client.h"

namespace tessera {
namespace {

using testing::ask;

std::unique_ptr<Engine> open_demo() {
  EngineOptions options;
  options.model = std::string(TESSERA_SOURCE_DIR) + "/models/demo";
  testing::use_test_device(options);
  options.session_len = 1024;
  options.max_batch_size = 4;
  auto [engine, status] = open_engine(options);
  EXPECT_TRUE(status.ok()) << status.message();
  return std::move(engine);
}

Request question(ResponseFormat format) {
  Request request;
  request.messages.push_back({"user", {{"How many bars are there?", -1}}});
  request.response_format = std::move(format);
  request.max_new_tokens = 200;
  return request;
}

constexpr const char* kSchema =
    R"({"type": "object", "properties": {"count": {"type": "integer", "minimum": 3, "maximum": 7},
        "colors": {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 1, "maxItems": 2},
        "note": {"type": "string", "maxLength": 8}}, "required": ["count", "colors", "note"], "additionalProperties": false})";

TEST(ResponseFormat, ASchemaIsKeptWhateverTheModelWouldRatherSay) {
  const auto engine = open_demo();
  for (const double temperature : {0.0, 2.0}) {
    Request request = question({ResponseFormat::Kind::kJsonSchema, kSchema});
    request.sampling.temperature = temperature;
    request.sampling.seed = 5;
    request.n = temperature > 0 ? 3 : 1;
    const auto recorder = ask(*engine, request);
    const auto json = Json::parse(recorder->answer().text);
    ASSERT_TRUE(json.ok()) << recorder->answer().text << ": " << json.status().message();
    EXPECT_EQ(json->as_object().size(), 3u);
    const int64_t count = json->find("count")->as_int64();
    EXPECT_TRUE(count >= 3 && count <= 7) << count;
    EXPECT_LE(json->find("colors")->as_array().size(), 2u);
    EXPECT_EQ(recorder->answer().finish.reason, FinishReason::kStop);
  }
}

TEST(ResponseFormat, WhatASchemaHoldsBeyondIsRefusedByName) {
  const auto engine = open_demo();
  const auto recorder = ask(*engine, question({ResponseFormat::Kind::kJsonSchema, R"({"type": "string", "pattern": "a"})"}));
  EXPECT_EQ(recorder->answer().finish.reason, FinishReason::kError);
  EXPECT_EQ(recorder->answer().finish.status.code(), StatusCode::kInvalidInput);
  EXPECT_NE(recorder->answer().finish.status.message().find("\"pattern\""), std::string::npos);
}

}  // namespace
}  // namespace tessera
