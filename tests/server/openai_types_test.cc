#include "server/openai_types.h"

#include <gtest/gtest.h>

namespace tessera::server {
namespace {

const ServedModel kModel{"demo", "/models/demo"};

ParsedRequest parse(const std::string& body, ApiError* error, const RequestBounds& bounds = {}) {
  return parse_chat_completion(body, kModel, bounds, error);
}

std::string chat(const std::string& fields) {
  return R"({"messages":[{"role":"user","content":"hi"}])" + (fields.empty() ? "" : "," + fields) + "}";
}

std::string picture(const std::string& fields) {
  return R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAEC")" +
         (fields.empty() ? "" : "," + fields) + R"(}},{"type":"text","text":"b"}]}]})";
}

TEST(OpenaiTypes, ReadsEveryField) {
  ApiError error;
  const ParsedRequest parsed = parse(
      chat(R"("model":"demo","temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"repetition_penalty":1.1,
              "presence_penalty":-1,"frequency_penalty":2,"seed":-3,"logit_bias":{"17":-100},"max_completion_tokens":9,
              "n":2,"stop":["a","b"],"ignore_eos":true,"logprobs":true,"top_logprobs":5,"cache_salt":"s",
              "stream":true,"stream_options":{"include_usage":true},"markup_tokens":["ref","box"],
              "response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object"}}})"),
      &error);
  ASSERT_FALSE(error.failed()) << error.message;
  const Request& r = parsed.request;
  EXPECT_EQ(r.sampling.temperature, 0.5);
  EXPECT_EQ(r.sampling.top_k, 40);
  EXPECT_EQ(r.sampling.frequency_penalty, 2.0);
  EXPECT_EQ(r.sampling.seed, static_cast<uint64_t>(-3));
  EXPECT_EQ(r.sampling.logit_bias.at(17), -100);
  EXPECT_EQ(r.max_new_tokens, 9);
  EXPECT_EQ(r.n, 2);
  EXPECT_EQ(r.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(r.ignore_eos);
  EXPECT_EQ(r.logprobs, 5);
  EXPECT_EQ(r.cache_salt, "s");
  EXPECT_EQ(r.markup_tokens.size(), 2u);
  EXPECT_EQ(r.response_format.kind, ResponseFormat::Kind::kJsonSchema);
  EXPECT_EQ(r.response_format.schema, R"({"type":"object"})");
  EXPECT_TRUE(parsed.stream && parsed.include_usage && parsed.chat);
}

TEST(OpenaiTypes, ValuesOfABodyAreBounded) {
  ApiError error;
  const RequestBounds bounds{.json_values = 8};
  parse(chat(R"("stop":["a","b"])"), &error, bounds);  // object, list, message, role, content, list, two strings
  EXPECT_FALSE(error.failed()) << error.message;
  parse(chat(R"("stop":["a","b","c"])"), &error, bounds);
  EXPECT_EQ(error.code, "invalid_json");
  EXPECT_NE(error.message.find("more than 8 values"), std::string::npos) << error.message;
  error = {};
  const RequestBounds usual;
  std::string ids = "{\"tokens\":[0";
  for (int64_t i = 1; i < usual.max_token_ids; ++i) ids += ",0";
  EXPECT_EQ(parse_detokenize(ids + "]}", kModel, usual, &error).ids.size(), static_cast<size_t>(usual.max_token_ids));
  EXPECT_FALSE(error.failed()) << error.message;
}

TEST(OpenaiTypes, TextToTokenizeIsBounded) {
  const RequestBounds bounds{.max_tokenize_characters = 4};
  for (const auto& [body, fits] : std::initializer_list<std::pair<std::string, bool>>{
           {R"({"prompt":"\u00e9\u00e9\u00e9\u00e9"})", true},
           {R"({"prompt":"abcde"})", false},
           {R"({"messages":[{"role":"user","content":"ab"},{"role":"user","content":"cd"}]})", true},
           {R"({"messages":[{"role":"user","content":"ab"},{"role":"user","content":"cde"}]})", false}}) {
    ApiError error;
    parse_tokenize(body, kModel, bounds, &error);
    EXPECT_EQ(error.failed(), !fits) << body << ": " << error.message;
    if (!fits) { EXPECT_NE(error.message.find("5 characters; at most 4"), std::string::npos) << error.message; }
  }
}

TEST(OpenaiTypes, KeepsPartsInTheirOrder) {
  ApiError error;
  const ParsedRequest parsed = parse(picture(""), &error);
  ASSERT_FALSE(error.failed()) << error.message;
  const auto& content = parsed.request.messages.at(0).content;
  ASSERT_EQ(content.size(), 3u);
  EXPECT_EQ(content[0].text, "a");
  EXPECT_EQ(content[1].image, 0);
  EXPECT_EQ(content[2].text, "b");
  EXPECT_EQ(parsed.request.images.at(0).bytes, std::string("\0\1\2", 3));
  EXPECT_FALSE(parsed.request.image_placeholders);
}

TEST(OpenaiTypes, DetailBecomesTiles) {
  const struct {
    const char* fields;
    std::optional<int64_t> most, least;
  } kCases[] = {{"", std::nullopt, std::nullopt},
                {R"("detail":"auto")", std::nullopt, std::nullopt},
                {R"("detail":"low")", 1, 1},
                {R"("detail":"high")", 24, std::nullopt},
                {R"("detail":"high","max_dynamic_patch":6)", 6, std::nullopt},
                {R"("detail":"low","max_dynamic_patch":6)", 6, std::nullopt}};
  for (const auto& c : kCases) {
    ApiError error;
    const ParsedRequest parsed = parse(picture(c.fields), &error);
    ASSERT_FALSE(error.failed()) << error.message;
    EXPECT_EQ(parsed.request.images[0].max_dynamic_patch, c.most) << c.fields;
    EXPECT_EQ(parsed.request.images[0].min_dynamic_patch, c.least) << c.fields;
  }
}

TEST(OpenaiTypes, NamesWhatIsWrong) {
  const std::pair<const char*, const char*> kCases[] = {
      {R"("temperature":2.1)", "temperature"},
      {R"("top_p":0)", "top_p"},
      {R"("max_tokens":1.5)", "max_tokens"},
      {R"("logit_bias":{"99999999999":1})", "logit_bias"},
      {R"("tools":[{}])", "tools"},
      {R"("nonsense":1)", "nonsense"},
      {R"("n":0)", "n"},
      {R"("response_format":{"type":"json_schema"})", "response_format.json_schema"}};
  for (const auto& [fields, param] : kCases) {
    ApiError error;
    parse(chat(fields), &error);
    EXPECT_EQ(error.status, 400) << fields;
    EXPECT_EQ(error.param, param) << fields;
  }
}

TEST(OpenaiTypes, NullCountsAsAbsent) {
  ApiError error;
  parse(chat(R"("temperature":null,"stop":null,"tools":null,"stream_options":null)"), &error);
  EXPECT_FALSE(error.failed()) << error.message;
}

TEST(OpenaiTypes, TheModelMustBeTheServedOne) {
  for (const char* name : {"demo", "/models/demo"}) {
    ApiError error;
    parse(chat("\"model\":\"" + std::string(name) + "\""), &error);
    EXPECT_FALSE(error.failed());
  }
  ApiError error;
  parse(chat(R"("model":"gpt-4o")"), &error);
  EXPECT_EQ(error.status, 404);
  EXPECT_EQ(error.code, "model_not_found");
}

TEST(OpenaiTypes, LenientNamesWhatItLeavesOut) {
  ApiError error;
  const ParsedRequest parsed = parse(chat(R"("nonsense":1)"), &error, {.lenient = true});
  EXPECT_FALSE(error.failed());
  EXPECT_EQ(parsed.ignored_fields, std::vector<std::string>{"nonsense"});
}

TEST(OpenaiTypes, RefusesDepthAndNoise) {
  for (const std::string& body : {std::string(), std::string("{"), std::string("null"), std::string("[]"),
                                  std::string(1000, '['), std::string("{\"messages\":3}")}) {
    ApiError error;
    parse(body, &error);
    EXPECT_EQ(error.status, 400) << body.substr(0, 20);
  }
}

TEST(OpenaiTypes, DetokenizeChecksIds) {
  ApiError error;
  EXPECT_EQ(parse_detokenize(R"({"tokens":[1,2]})", kModel, {}, &error).ids, (std::vector<int32_t>{1, 2}));
  EXPECT_FALSE(error.failed());
  parse_detokenize(R"({"tokens":[1,-2]})", kModel, {}, &error);
  EXPECT_EQ(error.param, "tokens");
}

}  // namespace
}  // namespace tessera::server
