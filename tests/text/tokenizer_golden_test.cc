#include <gtest/gtest.h>

#include "tests/support/fixtures.h"
#include "tests/text/text_fixtures.h"
#include "text/detokenizer.h"

namespace tessera {
namespace {
using testing::fixture_path;
using testing::fixture_tokenizer;
using testing::ids_of;

struct Case {
  std::string name;
  std::string layout;
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const auto& fixture : testing::tokenizer_fixtures())
    for (const auto& layout : fixture.layouts) cases.push_back({fixture.name, layout});
  return cases;
}

class TokenizerGolden : public ::testing::TestWithParam<Case> {
 protected:
  const Tokenizer& tokenizer() const { return fixture_tokenizer(GetParam().name, GetParam().layout); }
  std::vector<Json> corpus(const std::string& kind) const {
    return testing::json_lines(fixture_path("tokenizers/" + GetParam().name + "." + kind + ".jsonl"));
  }
};

TEST_P(TokenizerGolden, PlainText) {
  for (const Json& line : corpus("plain")) {
    const std::string& text = line.find("text")->as_string();
    const auto ids = tokenizer().encode(text);
    EXPECT_EQ(ids, ids_of(*line.find("ids"))) << line.dump();
    EXPECT_EQ(tokenizer().decode(ids), line.find("decoded")->as_string());
  }
}

TEST_P(TokenizerGolden, AddedTokensRecognised) {
  for (const Json& line : corpus("special")) {
    const auto ids = tokenizer().encode_with_special(line.find("text")->as_string());
    EXPECT_EQ(ids, ids_of(*line.find("ids"))) << line.dump();
    EXPECT_EQ(tokenizer().decode(ids), line.find("decoded")->as_string());
  }
}

TEST_P(TokenizerGolden, StreamedPieces) {
  for (const Json& line : corpus("stream")) {
    Detokenizer detokenizer(tokenizer());
    std::vector<std::string> pieces, expected;
    for (const int32_t id : ids_of(*line.find("ids"))) {
      pieces.push_back(detokenizer.push(id));
      EXPECT_LE(detokenizer.held_bytes(), 3u);
    }
    pieces.push_back(detokenizer.finish());
    for (const Json& piece : line.find("pieces")->as_array()) expected.push_back(piece.as_string());
    EXPECT_EQ(pieces, expected) << line.dump();
    EXPECT_EQ(tokenizer().decode(ids_of(*line.find("ids"))), line.find("decoded")->as_string());
  }
}

TEST_P(TokenizerGolden, PlainTextNeverBecomesControl) {
  for (const Json& line : corpus("special"))
    for (const int32_t id : tokenizer().encode(line.find("text")->as_string()))
      EXPECT_FALSE(tokenizer().is_control(id)) << line.dump();
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerGolden, ::testing::ValuesIn(all_cases()), [](const auto& info) {
  std::string name = info.param.name + "_" + info.param.layout;
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
});

// Texts that made tokenizers slow: each has to be encoded in time that grows with its length. With quadratic work these
// would take hours, not the test's time limit.
TEST(TokenizerWork, LongTextsOfOneKind) {
  constexpr size_t kBytes = 1 << 20;
  const auto repeated = [](const std::string& unit) {
    std::string text;
    while (text.size() < kBytes) text += unit;
    return text;
  };
  const std::vector<std::string> units = {" ",  "a", "\n", " \n", "ab", "!", "<|", "\xCC\x81\xCC\xA3",
                                          "\xE4\xBD\xA0", "\xF0\x9F\x98\x80", "1", " the \xD0\xB4\xD0\xB0\xE0\xA4\x95 5"};
  for (const auto& [name, layout] : {std::pair("qwen3", "tokenizer.json"), std::pair("llama2-style", "tokenizer.model"),
                                     std::pair("internlm2-style", "tokenizer.model")}) {
    const Tokenizer& tokenizer = fixture_tokenizer(name, layout);
    for (const std::string& unit : units) {
      const std::string text = repeated(unit);
      const auto ids = tokenizer.encode(text);
      EXPECT_GT(ids.size(), 0u);
      if (unit != "\xCC\x81\xCC\xA3") {  // NFC reorders these
        EXPECT_EQ(tokenizer.decode(ids), text) << name;
      }
    }
  }
}

}  // namespace
}  // namespace tessera
