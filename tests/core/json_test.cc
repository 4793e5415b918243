#include "core/json.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(Json, KeepsOrderAndTypes) {
  auto json = Json::parse(R"({"b": 1, "a": [true, null, 1.5, "x\u00e9"], "u": 18446744073709551615})");
  ASSERT_TRUE(json.ok()) << json.status().message();
  EXPECT_EQ(json->dump(), R"({"b":1,"a":[true,null,1.5,"xé"],"u":18446744073709551615})");
  EXPECT_FALSE(json->find("u")->fits_int64());
}

TEST(Json, RefusesWhatIsNotOneValidText) {
  for (const char* text : {"", "{", "[1,]", "{\"a\":1,\"a\":2}", "1 2", "\"\xff\"", "\"\\ud800\"", "nul"})
    EXPECT_FALSE(Json::parse(text).ok()) << text;
}

TEST(Json, RefusesDeepNesting) {
  EXPECT_TRUE(Json::parse(std::string(64, '[') + std::string(64, ']')).ok());
  auto deep = Json::parse(std::string(100000, '['));
  ASSERT_FALSE(deep.ok());
  EXPECT_NE(deep.status().message().find("64"), std::string::npos);
}

TEST(Json, LenientSurrogatesBecomeReplacementCharacters) {
  auto json = Json::parse_lenient_surrogates(R"(["\ud800x", "\ud83d\ude00", "\\ud800"])");
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(json->as_array()[0].as_string(), "\xEF\xBF\xBDx");
  EXPECT_EQ(json->as_array()[1].as_string(), "\xF0\x9F\x98\x80");
  EXPECT_EQ(json->as_array()[2].as_string(), "\\ud800");
}

TEST(JsonReader, NamesFileKeyValueAndRange) {
  Json json = *Json::parse(R"({"n": 0, "s": "x"})");
  JsonReader reader(json, "config.json");
  EXPECT_EQ(reader.integer("n", 1, 8).status().message(), "[config.json] n is 0; expected an integer in [1, 8]");
  EXPECT_FALSE(reader.integer("missing", 1, 8).ok());
  EXPECT_EQ(*reader.integer_or("missing", 3, 1, 8), 3);
  EXPECT_FALSE(reader.integer("s", 1, 8).ok());
}

}  // namespace
}  // namespace tessera
