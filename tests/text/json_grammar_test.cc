#include "text/json_grammar.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "tests/text/text_fixtures.h"
#include "text/grammar_schema.h"

namespace tessera {
namespace {

constexpr int32_t kEnd = 260;

const Tokenizer& tokenizer() {
  static const auto loaded = [] {
    Json json = testing::small_tokenizer_json();
    for (auto& [key, value] : json.as_object())
      if (key == "model")
        for (auto& [name, child] : value.as_object())
          if (name == "vocab") {
            int id = 300;
            for (const char* token : {"{\"", "\":", "\":Ġ", ",Ġ\"", "\"}", "[]", "},{", "12", "true", "null", "\",\"", "\\\"", "\\u00"})
              child.as_object().emplace_back(token, Json(id++));
          }
    return testing::load_files({{"tokenizer.json", json.dump()}}).value();
  }();
  return *loaded;
}

std::shared_ptr<const GrammarVocabulary> vocabulary() {
  static const auto made = std::make_shared<const GrammarVocabulary>(tokenizer());
  return made;
}

Json parse(const std::string& text) { return Json::parse(text).value(); }

std::shared_ptr<const JsonGrammar> grammar(const std::string& schema) {
  auto made = JsonGrammar::from_schema(parse(schema), vocabulary());
  EXPECT_TRUE(made.ok()) << schema << ": " << (made.ok() ? "" : made.status().message());
  return *made;
}

bool allowed(const std::vector<uint32_t>& mask, int32_t id) { return mask[static_cast<size_t>(id) / 32] >> (id % 32) & 1; }

std::vector<uint32_t> mask_of(TokenConstraint* constraint) {
  std::vector<uint32_t> mask((static_cast<size_t>(tokenizer().vocab_size()) + 31) / 32);
  constraint->fill_mask(mask);
  return mask;
}

// Feeds bytes one token at a time and, in a clone, a random token where it fits; both must agree with the masks.
bool accepts(const JsonGrammar& g, const std::string& text) {
  auto constraint = g.start({kEnd});
  for (const char c : text) {
    const int32_t id = static_cast<unsigned char>(c);
    const bool in_mask = allowed(mask_of(constraint.get()), id);
    if (in_mask != constraint->accept(id)) ADD_FAILURE() << "mask and accept differ in " << text;
    if (!in_mask) return false;
  }
  return constraint->accept(kEnd) && constraint->finished();
}

TEST(JsonGrammar, Texts) {
  const auto g = grammar(R"({"type": "object", "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 3},
      "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 150}, "tags": {"type": "array", "items":
      {"enum": ["a", "ab", 5, 55]}, "maxItems": 2}}, "required": ["name"], "additionalProperties": false})");
  for (const char* good : {R"({"name":"x"})", R"({"age": 149, "name": "äöü"})", R"({ "name" : "a\"\n" , "tags" : [ "ab" , 55 ] })",
                           R"({"name":"\ud83d\ude00","tags":[]})", R"({"tags":[5],"name":"\u00e9"})", R"({"age":0,"name":"x"})"})
    EXPECT_TRUE(accepts(*g, good)) << good;
  for (const char* bad : {"{}", R"({"name":""})", R"({"name":"abcd"})", R"({"name":"x","name":"y"})", R"({"age":150,"name":"x"})",
                          R"({"age":-1,"name":"x"})", R"({"age":01,"name":"x"})", R"({"age":1.0,"name":"x"})", R"({"other":1})",
                          R"({"name":"x",})", R"({"name":"\ud83d"})", R"({"name":"\ude00"})", R"({"name":"\x"})", R"({"name":  "x"})",
                          R"( {"name":"x"})", R"({"name":"x"} )", R"({"name":"x","tags":["b"]})", R"({"name":"x","tags":[5,5,5]})",
                          "{\"name\":\"\n\"}", "{\"name\":\"\xC3\"}", "{\"name\":\"\xED\xA0\x80\"}", "", "{"})
    EXPECT_FALSE(accepts(*g, bad)) << bad;
}

TEST(JsonGrammar, NumbersWithinBounds) {
  const auto test = [](const std::string& bounds, const std::vector<std::string>& good, const std::vector<std::string>& bad) {
    const auto g = grammar("{" + bounds + "}");
    for (const auto& text : good) EXPECT_TRUE(accepts(*g, text)) << bounds << " " << text;
    for (const auto& text : bad) EXPECT_FALSE(accepts(*g, text)) << bounds << " " << text;
  };
  test(R"("type":"number","minimum":0.1,"maximum":2.5)", {"0.1", "0.15", "1", "2.5", "2.50", "2.499999"},
       {"0", "0.09", "2.51", "3", "-1", "10", "1e0", "1.", "00.5"});
  test(R"("type":"number","exclusiveMinimum":0,"exclusiveMaximum":1)", {"0.5", "0.000000001", "0.999999999"}, {"0", "1", "0.0", "1.0", "-0"});
  test(R"("type":"integer","minimum":-12,"maximum":-3)", {"-3", "-12", "-9"}, {"-2", "-13", "3", "0", "-120", "-1"});
  test(R"("type":"integer","minimum":95,"maximum":1002)", {"95", "99", "100", "1002", "999"}, {"94", "9", "1003", "0"});
  test(R"("type":"integer")", {"0", "-0", "123456789012345678"}, {"1234567890123456789", "1.5", "1e5"});
  test(R"("type":"number")", {"1e5", "-1.5E-10", "0.25"}, {"1e", "1e123", ".5", "+1"});
}

TEST(JsonGrammar, ChoicesAndReferences) {
  const auto tree = grammar(R"({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer"},
      "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["v", "next"], "additionalProperties": false}}})");
  EXPECT_TRUE(accepts(*tree, R"({"v":1,"next":{"next":null,"v":2}})"));
  EXPECT_FALSE(accepts(*tree, R"({"v":1,"next":{"v":2}})"));
  const auto pair = grammar(R"({"type": "array", "prefixItems": [{"const": {"a": [1, "x"]}}, {"type": ["string", "null"]}],
                                "items": false, "minItems": 1})");
  EXPECT_TRUE(accepts(*pair, R"([{"a":[1,"x"]}])"));
  EXPECT_TRUE(accepts(*pair, R"([{"a":[1,"x"]},null])"));
  EXPECT_FALSE(accepts(*pair, R"([])"));
  EXPECT_FALSE(accepts(*pair, R"([{"a":[1,"x"]},null,1])"));
  // Ambiguous alternatives do not multiply.
  const auto numbers = grammar(R"({"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "number"}, {"const": 1}]}})");
  std::string list = "[1";
  for (int i = 0; i < 200; ++i) list += ",1";
  EXPECT_TRUE(accepts(*numbers, list + ",1.5]"));
}

// All ways to read a text are followed while a token is chosen, so that their number is bounded; what is there twice, or
// is a constant, is no way of its own.
TEST(JsonGrammar, AlternativesOfAPlaceAreBounded) {
  const auto list = [](int count, const std::function<std::string(int)>& entry) {
    std::string text = R"({"anyOf": [)";
    for (int i = 0; i < count; ++i) text.append(i ? "," : "").append(entry(i));
    return text.append("]}");
  };
  const auto string = [](int i) { return std::string(R"({"type": "string", "maxLength": )").append(std::to_string(i + 1)).append("}"); };
  EXPECT_TRUE(accepts(*grammar(list(64, string)), std::string(1, '"').append(64, 'a').append(1, '"')));
  const auto constants = grammar(list(3000, [](int i) { return std::string(R"({"anyOf": [{"const": )").append(std::to_string(i)).append("}]}"); }));
  EXPECT_TRUE(accepts(*constants, "2999"));
  EXPECT_FALSE(accepts(*constants, "3000"));
  const auto same = grammar(list(300, [](int) { return R"({"anyOf": [{"type": "integer"}, {"$ref": "#"}]})"; }));
  EXPECT_TRUE(accepts(*same, "7"));
  for (const auto& [schema, place] : std::vector<std::pair<std::string, std::string>>{
           {list(65, string), "#: "},
           {list(5, [&](int i) { return list(20, [&](int j) { return string(20 * i + j); }); }), "#: "},
           {std::string(R"({"type": "array", "items": )").append(list(65, string)).append("}"), "#/items: "}}) {
    const auto made = JsonGrammar::from_schema(parse(schema), vocabulary());
    ASSERT_FALSE(made.ok()) << schema;
    EXPECT_NE(made.status().message().find(place + "more than 64 alternatives"), std::string::npos) << made.status().message();
  }
}

TEST(JsonGrammar, AnyObject) {
  const auto g = JsonGrammar::any_object(vocabulary());
  EXPECT_TRUE(accepts(*g, R"({"a":{"b":[1,2,{"c":null}],"d":true},"e":"x"})"));
  EXPECT_FALSE(accepts(*g, R"([1])"));
  EXPECT_FALSE(accepts(*g, R"({"a":1,"a":2})"));
  std::string deep = "{\"a\":";
  for (int i = 0; i < kMaxGrammarDepth; ++i) deep += "[";
  EXPECT_FALSE(accepts(*g, deep));
}

TEST(JsonGrammar, UnknownKeywordsAreRefusedByName) {
  for (const auto& [schema, word] : std::vector<std::pair<std::string, std::string>>{
           {R"({"type": "string", "pattern": "a+"})", "pattern"}, {R"({"type": "string", "format": "date"})", "format"},
           {R"({"oneOf": []})", "oneOf"}, {R"({"type": "integer", "multipleOf": 3})", "multipleOf"},
           {R"({"type": "object", "patternProperties": {}})", "patternProperties"}, {R"({"type": "text"})", "text"},
           {R"({"$ref": "http://x"})", "http://x"}, {R"({"anyOf": [{"type": "null"}], "type": "null"})", "type"},
           {R"({"type": "array", "uniqueItems": true})", "uniqueItems"}, {R"({"properties": {}})", "properties"}}) {
    const auto made = JsonGrammar::from_schema(parse(schema), vocabulary());
    ASSERT_FALSE(made.ok()) << schema;
    EXPECT_NE(made.status().message().find("\"" + word + "\""), std::string::npos) << made.status().message();
  }
  for (const char* schema : {R"({"type":"integer","minimum":3,"maximum":2})", R"({"type":"number","minimum":1e300})",
                             R"({"type":"string","minLength":5,"maxLength":4})", R"({"enum":[]})", R"({"enum":[1],"type":"string"})",
                             R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})", R"({"$ref":"#"})", "false", "5",
                             R"({"type":"object","required":["a"],"additionalProperties":false})",
                             R"({"type":"array","items":false,"minItems":1})"})
    EXPECT_FALSE(JsonGrammar::from_schema(parse(schema), vocabulary()).ok()) << schema;
}

// A plain reading of the same keywords, for whole documents.
bool valid(const Json& schema, const Json& value, const Json& root) {
  if (const Json* ref = schema.find("$ref"))
    return valid(*root.find("$defs")->find(ref->as_string().substr(8)), value, root);
  if (const Json* list = schema.find("anyOf")) {
    for (const Json& entry : list->as_array())
      if (valid(entry, value, root)) return true;
    return false;
  }
  if (const Json* list = schema.find("enum")) {
    for (const Json& entry : list->as_array())
      if (entry.dump() == value.dump()) return true;
    return false;
  }
  const Json* type_of = schema.find("type");
  if (!type_of) return true;
  const std::string& type = type_of->as_string();
  const auto bound = [&](const char* key, double fallback) {
    const Json* found = schema.find(key);
    return found ? found->as_double() : fallback;
  };
  if (type == "null") return value.is_null();
  if (type == "boolean") return value.is_bool();
  if (type == "integer" || type == "number") {
    if (type == "integer" ? !value.is_integer() : !value.is_number()) return false;
    const double number = value.as_double();
    return number >= bound("minimum", -1e300) && number <= bound("maximum", 1e300) &&
           number > bound("exclusiveMinimum", -1e301) && number < bound("exclusiveMaximum", 1e301);
  }
  if (type == "string") {
    if (!value.is_string()) return false;
    double length = 0;
    for (const char c : value.as_string()) length += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    return length >= bound("minLength", 0) && length <= bound("maxLength", 1e9);
  }
  if (type == "array") {
    if (!value.is_array()) return false;
    const auto& items = value.as_array();
    if (static_cast<double>(items.size()) < bound("minItems", 0) || static_cast<double>(items.size()) > bound("maxItems", 1e9)) return false;
    for (const Json& item : items)
      if (!valid(*schema.find("items"), item, root)) return false;
    return true;
  }
  if (!value.is_object()) return false;
  for (const Json& name : schema.find("required")->as_array())
    if (!value.find(name.as_string())) return false;
  for (const auto& [key, member] : value.as_object()) {
    const Json* entry = schema.find("properties")->find(key);
    if (entry ? !valid(*entry, member, root) : !schema.find("additionalProperties")->as_bool()) return false;
  }
  return true;
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  int below(int n) { return static_cast<int>(engine_() % static_cast<unsigned>(n)); }

  Json schema(int depth) {
    Json s = Json::object();
    const int kind = below(depth > 0 ? 8 : 5);
    if (kind == 0) {
      s.set("enum", parse(R"(["a", "ab", "abc", 1, 12, -1, true, null, {"k": [1]}])"));
    } else if (kind == 1) {
      s.set("type", below(2) ? "null" : "boolean");
    } else if (kind == 2) {
      const int low = below(2000) - 1000;
      s.set("type", below(2) ? "integer" : "number");
      if (below(2)) s.set(s.find("type")->as_string() == "number" && below(2) ? "exclusiveMinimum" : "minimum", low / 7.0);
      if (below(2)) s.set("maximum", low + below(300));
    } else if (kind <= 4) {
      s.set("type", "string");
      if (below(2)) s.set("minLength", below(3));
      if (below(2)) s.set("maxLength", 2 + below(4));
    } else if (kind == 5) {
      s.set("type", "array");
      s.set("items", schema(depth - 1));
      if (below(2)) s.set("minItems", below(3));
      if (below(2)) s.set("maxItems", 2 + below(3));
    } else if (kind == 6) {
      Json list = Json::array();
      for (int i = 1 + below(3); i > 0; --i) list.push_back(schema(depth - 1));
      s.set("anyOf", list);
    } else {
      Json properties = Json::object(), required = Json::array();
      for (const char* name : {"a", "ab", "b\"", "é"}) {
        if (!below(2)) continue;
        properties.set(name, schema(depth - 1));
        if (below(2)) required.push_back(name);
      }
      s.set("type", "object");
      s.set("properties", properties);
      s.set("required", required);
      s.set("additionalProperties", below(2) == 0);
    }
    return s;
  }

  // Some value of a schema.
  Json value(const Json& s) {
    if (const Json* list = s.find("enum")) return list->as_array()[static_cast<size_t>(below(static_cast<int>(list->as_array().size())))];
    if (const Json* list = s.find("anyOf")) return value(list->as_array()[static_cast<size_t>(below(static_cast<int>(list->as_array().size())))]);
    const std::string& type = s.find("type")->as_string();
    const auto number = [&](const char* key, double fallback) { return s.find(key) ? s.find(key)->as_double() : fallback; };
    if (type == "null") return nullptr;
    if (type == "boolean") return below(2) == 0;
    if (type == "integer" || type == "number") {
      const double low = std::ceil(std::max(number("minimum", -2000), number("exclusiveMinimum", -2000) + 0.001));
      const double high = std::floor(std::min(number("maximum", low + 5000), low + 5000));
      return Json(static_cast<int64_t>(low) + below(static_cast<int>(high - low) + 1));
    }
    if (type == "string") {
      std::string text;
      const int low = static_cast<int>(number("minLength", 0)), high = static_cast<int>(number("maxLength", low + 4));
      for (int i = low + below(high - low + 1); i > 0; --i)
        text += std::vector<std::string>{"a", "\"", "\\", "\n", "é", "😀", " ", "\x7F"}[static_cast<size_t>(below(8))];
      return text;
    }
    if (type == "array") {
      Json list = Json::array();
      const int low = static_cast<int>(number("minItems", 0)), high = static_cast<int>(number("maxItems", low + 3));
      for (int i = low + below(high - low + 1); i > 0; --i) list.push_back(value(*s.find("items")));
      return list;
    }
    Json object = Json::object();
    if (s.find("additionalProperties")->as_bool() && below(2)) object.set("other", parse(R"([1, {"x": "y"}, null, -2.5e3])"));
    for (const auto& [name, entry] : s.find("properties")->as_object()) {
      bool needed = below(2) == 0;
      for (const Json& r : s.find("required")->as_array()) needed = needed || r.as_string() == name;
      if (needed) object.set(name, value(entry));
    }
    return object;
  }

 private:
  std::mt19937 engine_;
};

TEST(JsonGrammarProperty, GeneratedDocumentsAreAccepted) {
  Random random(1);
  int schemas = 0;
  for (int round = 0; round < 400; ++round) {
    const Json schema = random.schema(3);
    const auto made = JsonGrammar::from_schema(schema, vocabulary());
    if (!made.ok()) continue;  // contradictory bounds
    ++schemas;
    const Json value = random.value(schema);
    ASSERT_TRUE(valid(schema, value, schema)) << schema.dump() << " " << value.dump();
    EXPECT_TRUE(accepts(**made, value.dump())) << schema.dump() << " " << value.dump();
  }
  EXPECT_GT(schemas, 300);
}

TEST(JsonGrammarProperty, EveryAllowedWalkEndsInAValidDocument) {
  Random random(2);
  int finished = 0;
  for (int round = 0; round < 400; ++round) {
    const Json schema = random.schema(3);
    const auto made = JsonGrammar::from_schema(schema, vocabulary());
    if (!made.ok()) continue;
    auto constraint = (*made)->start({kEnd});
    std::string text;
    for (int step = 0; !constraint->finished() && step < 400; ++step) {
      const auto mask = mask_of(constraint.get());
      std::vector<int32_t> ids;
      for (int32_t id = 0; id < tokenizer().vocab_size(); ++id)
        if (allowed(mask, id)) ids.push_back(id);
      ASSERT_FALSE(ids.empty()) << schema.dump() << " stuck at " << text;
      int32_t id = ids[static_cast<size_t>(random.below(static_cast<int>(ids.size())))];
      if (step > 60)  // long enough: end what can be ended
        for (const int32_t closing : {int32_t{kEnd}, int32_t{'"'}, int32_t{'}'}, int32_t{']'}, int32_t{':'}})
          if (allowed(mask, closing) && (closing == kEnd || random.below(2))) {
            id = closing;
            break;
          }
      auto clone = constraint->clone();
      ASSERT_TRUE(clone->accept(id));
      ASSERT_TRUE(constraint->accept(id)) << text;
      if (id != kEnd) text += tokenizer().token_bytes(id);
      // What is not in the mask is not accepted.
      const int32_t other = random.below(tokenizer().vocab_size());
      auto before = constraint->clone();
      if (!constraint->finished()) {
        EXPECT_EQ(before->accept(other), allowed(mask_of(constraint.get()), other)) << text << " + " << other;
      }
    }
    if (!constraint->finished()) continue;  // a required name that chance does not spell
    ++finished;
    const auto json = Json::parse(text);
    ASSERT_TRUE(json.ok()) << text << ": " << json.status().message();
    EXPECT_TRUE(valid(schema, *json, schema)) << schema.dump() << " " << text;
  }
  EXPECT_GT(finished, 200);
}

// A vocabulary of real size: masks of a typical answer are found in the cache or quickly made.
TEST(JsonGrammar, MasksOfALargeVocabulary) {
  const Tokenizer& qwen = testing::fixture_tokenizer("qwen3", "tokenizer.json");
  const auto large = std::make_shared<const GrammarVocabulary>(qwen);
  const auto g = JsonGrammar::from_schema(parse(R"({"type": "object", "properties": {"title": {"type": "string"},
      "boxes": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}}},
      "required": ["title", "boxes"]})"), large).value();
  const int32_t end = *qwen.token_id("<|im_end|>");
  const std::string text = R"({"title": "A cat sits on the window and looks at the rain outside, 它在看雨。", "boxes": [[1, 20, 300, 4], [5, 6, 7, 8]]})";
  std::vector<uint32_t> mask(large->words());
  for (int round = 0; round < 20; ++round) {
    auto constraint = g->start({end});
    for (const int32_t id : qwen.encode(text)) {
      constraint->fill_mask(mask);
      ASSERT_TRUE(allowed(mask, id));
      ASSERT_FALSE(allowed(mask, end));
      ASSERT_TRUE(constraint->accept(id));
    }
    constraint->fill_mask(mask);
    EXPECT_TRUE(allowed(mask, end));
    EXPECT_TRUE(constraint->accept(end));
    constraint->fill_mask(mask);
    EXPECT_TRUE(std::all_of(mask.begin(), mask.end(), [](uint32_t word) { return word == 0; }));
  }
}

}  // namespace
}  // namespace tessera
