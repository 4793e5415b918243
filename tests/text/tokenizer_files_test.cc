#include <gtest/gtest.h>

#include "tests/support/fixtures.h"
#include "tests/text/text_fixtures.h"
#include "text/tokenizer.h"

namespace tessera {
namespace {
using testing::load_files;
using testing::sentencepiece_bytes;
using testing::small_tokenizer_json;

constexpr const char* kMark = "\xE2\x96\x81";

// The small tokenizer.json with one value of its tree replaced: path "model/vocab/ab", value as JSON text.
std::string changed(const std::string& path, const std::string& value) {
  Json json = small_tokenizer_json();
  Json* at = &json;
  size_t begin = 0;
  for (size_t slash; (slash = path.find('/', begin)) != std::string::npos; begin = slash + 1)
    for (auto& [key, child] : at->as_object())
      if (key == path.substr(begin, slash - begin)) {
        at = &child;
        break;
      }
  at->set(path.substr(begin), Json::parse(value).value());
  return json.dump();
}

std::string error_of(const std::vector<std::pair<std::string, std::string>>& files) {
  const auto loaded = load_files(files);
  if (loaded.ok()) return "no error";
  EXPECT_EQ(loaded.status().code(), StatusCode::kInvalidInput);
  EXPECT_EQ(loaded.status().message().find('\n'), std::string::npos);
  return loaded.status().message();
}

std::string json_error(const std::string& path, const std::string& value) {
  return error_of({{"tokenizer.json", changed(path, value)}});
}

std::unique_ptr<Tokenizer> small(const std::string& path, const std::string& value) {
  return load_files({{"tokenizer.json", changed(path, value)}}).value();
}

using Ids = std::vector<int32_t>;

TEST(TokenizerJson, SmallOne) {
  const auto t = load_files({{"tokenizer.json", small_tokenizer_json().dump()}}).value();
  EXPECT_EQ(t->vocab_size(), 262);
  EXPECT_EQ(t->encode("abc ade"), (Ids{257, 259, 258}));
  EXPECT_EQ(t->encode("<|end|>").size(), 7u);
  EXPECT_EQ(t->encode_with_special("ab<|end|> \n de<think>"), (Ids{256, 260, 258, 261}));
  EXPECT_EQ(t->decode(Ids{256, 260, 261}), "ab<think>");
  EXPECT_EQ(t->encode("\xFF"), (Ids{0xEF, 0xBF, 0xBD}));
  EXPECT_FALSE(t->add_bos().has_value());
  EXPECT_FALSE(t->has_piece(262));
  EXPECT_EQ(t->token_bytes(-1), "");
}

TEST(TokenizerJson, HolesHaveNoPiece) {
  const auto t = small("added_tokens", R"([{"id": 300, "content": "<x>", "special": true}])");
  EXPECT_EQ(t->vocab_size(), 301);
  EXPECT_FALSE(t->has_piece(280));
  EXPECT_TRUE(t->has_piece(300));
}

TEST(TokenizerJson, IgnoreMergesTakesWholeCuts) {
  // "de" then "c": no rule makes "cde", but it is in the vocabulary.
  Json json = small_tokenizer_json();
  for (auto& [key, value] : json.as_object())
    if (key == "model") {
      for (auto& [name, child] : value.as_object())
        if (name == "vocab") child.set("cde", 262);
      value.set("ignore_merges", true);
    }
  EXPECT_EQ(load_files({{"tokenizer.json", json.dump()}}).value()->encode("cde"), (Ids{262}));
}

TEST(TokenizerJson, FlagsOfAddedTokens) {
  const auto t = small("added_tokens", R"([
    {"id": 260, "content": "<l>", "lstrip": true, "special": true},
    {"id": 261, "content": "word", "single_word": true, "special": false, "normalized": false},
    {"id": 262, "content": "<l>x", "special": true}])");
  EXPECT_EQ(t->encode_with_special("de \n\t<l> b"), (Ids{258, 260, ' ', 'b'}));
  EXPECT_EQ(t->encode_with_special("<l>xx"), (Ids{262, 'x'}));  // the longest
  EXPECT_EQ(t->encode_with_special("word"), (Ids{261}));
  EXPECT_EQ(t->encode_with_special("-word-"), (Ids{'-', 261, '-'}));
  EXPECT_EQ(t->encode_with_special("words").size(), 5u);
  EXPECT_EQ(t->encode_with_special("\xC3\xA9word").size(), 6u);
}

TEST(TokenizerJson, NormalizedTokensAreFoundAfterNormalization) {
  Json json = Json::parse(changed("added_tokens", R"([{"id": 260, "content": "é!", "special": false, "normalized": true},
                                                      {"id": 261, "content": "è!", "special": true, "normalized": false}])"))
                  .value();
  for (auto& [key, value] : json.as_object())
    if (key == "normalizer") value = Json::parse(R"({"type": "NFC"})").value();
  const auto t = load_files({{"tokenizer.json", json.dump()}}).value();
  EXPECT_EQ(t->encode_with_special("e\xCC\x81!"), (Ids{260}));
  EXPECT_GT(t->encode_with_special("e\xCC\x80!").size(), 1u);
}

TEST(TokenizerJson, BosByTemplateAndByConfig) {
  const std::string with_bos =
      changed("post_processor", R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|end|>"}},
                                    {"Sequence": {"id": "A"}}]})");
  EXPECT_EQ(load_files({{"tokenizer.json", with_bos}}).value()->add_bos(), 260);
  EXPECT_FALSE(load_files({{"tokenizer.json", with_bos}, {"tokenizer_config.json", R"({"add_bos_token": false})"}})
                   .value()
                   ->add_bos()
                   .has_value());
  const std::string config = R"({"add_bos_token": true, "bos_token": {"content": "<|end|>"}})";
  EXPECT_EQ(load_files({{"tokenizer.json", small_tokenizer_json().dump()}, {"tokenizer_config.json", config}})
                .value()
                ->add_bos(),
            260);
}

TEST(TokenizerJson, BadFiles) {
  EXPECT_NE(error_of({{"tokenizer.json", "{\"model\": {"}}).find("tokenizer.json"), std::string::npos);
  EXPECT_NE(error_of({{"tokenizer.json", ""}}), "no error");
  EXPECT_NE(error_of({{"tokenizer.json", "\xFF\xFE"}}), "no error");
  EXPECT_NE(error_of({{"tokenizer.json", "[]"}}), "no error");
  EXPECT_EQ(json_error("model/type", "\"Unigram\""), "[tokenizer.json] model type \"Unigram\" is not supported; expected BPE");
  EXPECT_EQ(json_error("model/vocab", "[]"), "[tokenizer.json] the vocabulary is no object of tokens and ids");
  EXPECT_EQ(json_error("model/vocab/ab", "\"x\""),
            "[tokenizer.json] the id of token \"ab\" is \"\"x\"\"; expected an integer");
  EXPECT_EQ(json_error("model/vocab/ab", "-1"), "[tokenizer.json] token \"ab\" has id -1; expected 0..1048575");
  EXPECT_EQ(json_error("model/vocab/ab", "4000000000"),
            "[tokenizer.json] token \"ab\" has id 4000000000; expected 0..1048575");
  EXPECT_EQ(json_error("model/vocab/ab", "7"), "[tokenizer.json] id 7 stands for two tokens, one of them \"ab\"");
  EXPECT_EQ(json_error("model/merges", R"(["a z"])"),
            "[tokenizer.json] merge 0 needs the token \"az\", which the vocabulary lacks");
  EXPECT_EQ(json_error("model/merges", R"(["a b", 5])"), "[tokenizer.json] merge 1 is \"5\"; expected two tokens");
  EXPECT_NE(json_error("model/merges", R"([["a", "b", "c"]])"), "no error");
  EXPECT_NE(json_error("model/merges", R"(["ab "])"), "no error");
  EXPECT_NE(json_error("model/merges", "{}"), "no error");
  EXPECT_EQ(json_error("normalizer", R"({"type": "Lowercase"})"),
            "[tokenizer.json] the normalizer \"{\"type\":\"Lowercase\"}\" is not supported");
  EXPECT_EQ(json_error("pre_tokenizer", R"({"type": "Whitespace"})"),
            "[tokenizer.json] the pre-tokenizer \"{\"type\":\"Whitespace\"}\" is not supported");
  EXPECT_NE(json_error("pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern":
      {"Regex": "\\w+"}, "behavior": "Isolated", "invert": false}, {"type": "ByteLevel", "use_regex": false}]})")
                .find("is not supported"),
            std::string::npos);
  EXPECT_NE(json_error("pre_tokenizer", "null"), "no error");
  EXPECT_NE(json_error("decoder", R"({"type": "WordPiece"})"), "no error");
  EXPECT_NE(json_error("post_processor", R"({"type": "BertProcessing"})"), "no error");
  EXPECT_EQ(json_error("added_tokens", R"([{"id": 260, "content": "x1"}, {"id": 260, "content": "x2"}])"),
            "[tokenizer.json] id 260 stands for two added tokens, \"x1\" and \"x2\"");
  EXPECT_NE(json_error("added_tokens", R"([{"id": 260, "content": ""}])"), "no error");
  EXPECT_NE(json_error("added_tokens", R"([{"id": -5, "content": "x"}])"), "no error");
  EXPECT_NE(json_error("added_tokens", R"([{"id": 9000000, "content": "x"}])"), "no error");
  EXPECT_EQ(json_error("added_tokens", R"([{"id": 300, "content": "ab"}])"),
            "[tokenizer.json] the added token \"ab\" has id 300, in the vocabulary 256");
  EXPECT_NE(json_error("added_tokens", "7"), "no error");
}

TEST(TokenizerJson, MissingBytesAreRefused) {
  Json json = small_tokenizer_json();
  for (auto& [key, value] : json.as_object())
    if (key == "model")
      for (auto& [name, child] : value.as_object())
        if (name == "vocab") child.as_object().erase(child.as_object().begin() + 'x');
  EXPECT_EQ(error_of({{"tokenizer.json", json.dump()}}),
            "[tokenizer.json] the vocabulary lacks the byte piece \"x\"; vocabularies without all 256 bytes are not supported");
}

TEST(TokenizerFiles, ABrokenTokenizerJsonIsNotPassedOver) {
  EXPECT_NE(error_of({{"tokenizer.json", "{"}, {"tokenizer.model", sentencepiece_bytes({}, false)}}), "no error");
}

TEST(TokenizerFiles, NothingThere) {
  const std::string empty = testing::scratch_dir();
  EXPECT_EQ(Tokenizer::load(empty).status().message(),
            "tokenizer: \"" + empty + "\" holds no tokenizer.json, no vocab.json with merges.txt and no tokenizer.model");
  EXPECT_NE(Tokenizer::load(empty + "/absent").status().message().find("is not a readable directory"), std::string::npos);
}

std::string small_vocab() { return small_tokenizer_json().find("model")->find("vocab")->dump(); }

TEST(VocabAndMerges, BadFiles) {
  const auto error = [](const std::string& merges, const std::string& added = "{}", const std::string& config = "{}") {
    return error_of({{"vocab.json", small_vocab()},
                     {"merges.txt", merges},
                     {"added_tokens.json", added},
                     {"tokenizer_config.json", config}});
  };
  EXPECT_EQ(error("#version: 0.2\na b\r\n\nab c\n"), "no error");
  EXPECT_EQ(error("a b\nabc\n"), "[merges.txt] line 2 is \"abc\"; expected two tokens and one space");
  EXPECT_EQ(error("a b c\n"), "[merges.txt] line 1 is \"a b c\"; expected two tokens and one space");
  EXPECT_EQ(error("b a\n"), "[merges.txt] line 1 needs the token \"ba\", which the vocabulary lacks");
  EXPECT_EQ(error(" a\n"), "[merges.txt] line 1 has an empty side");
  EXPECT_EQ(error("\xFF b\n"), "[merges.txt] is not valid UTF-8");
  EXPECT_EQ(error("", R"({"<x>": "5"})"), "[added_tokens.json] the id of \"<x>\" is \"\"5\"\"; expected 0..1048575");
  EXPECT_EQ(error("", R"({"<x>": 300, "<y>": 300})"),
            "[tokenizer_config.json] id 300 stands for two added tokens, \"<x>\" and \"<y>\"");
  EXPECT_EQ(error("", "[]"), "[added_tokens.json] is no JSON object");
  EXPECT_NE(error("", "{}", R"({"tokenizer_class": "BertTokenizer"})").find("BertTokenizer"), std::string::npos);
  EXPECT_NE(error("", "{}", R"({"added_tokens_decoder": {"x": {"content": "a"}}})"), "no error");
  EXPECT_NE(error("", R"({"<x>": 300})", R"({"added_tokens_decoder": {"301": {"content": "<x>"}}})"), "no error");
  EXPECT_NE(error("", "{}", R"({"add_bos_token": "yes"})"), "no error");
}

TEST(VocabAndMerges, ControlTokensWithoutFlags) {
  const auto t = load_files({{"vocab.json", small_vocab()},
                             {"merges.txt", "a b\n"},
                             {"added_tokens.json", R"({"<|x|>": 260, "<img>": 261, "<think>": 262, "<s>": 263})"},
                             {"special_tokens_map.json", R"({"bos_token": "<s>"})"}})
                     .value();
  EXPECT_TRUE(t->is_control(260));
  EXPECT_TRUE(t->is_control(261));
  EXPECT_FALSE(t->is_control(262));
  EXPECT_TRUE(t->is_control(263));
}

// Yi's vocabulary spells <img> as an ordinary piece.
TEST(SentencePiece, SpecialNamesInTheVocabularyAreControlTokens) {
  const auto t = load_files({{"tokenizer.model", sentencepiece_bytes({{"<", -1, 1}, {"i", -2, 1}, {"<i", -3, 1}, {"mg>", -4, 1},
                                                                      {"m", -5, 1}, {"g>", -6, 1}, {"g", -7, 1}, {">", -8, 1},
                                                                      {"<img>", -9, 1}}, false)}})
                     .value();
  const int32_t image = *t->token_id("<img>");
  EXPECT_TRUE(t->is_control(image));
  EXPECT_EQ(t->encode("<img>"), (Ids{261, 262}));
  EXPECT_EQ(t->encode_with_special("<img>"), (Ids{image}));
}

TEST(SentencePiece, MergesByScoreThenLeft) {
  const auto t = load_files({{"tokenizer.model", sentencepiece_bytes({{"a", -9, 1}, {"b", -9, 1}, {"ab", -2, 1}, {"ba", -1, 1},
                                                                      {"aa", -1, 1}, {"xy", -3, 1}, {"UU", -1, 4}}, false)}})
                     .value();
  EXPECT_EQ(t->encode("aba"), (Ids{259, 262}));     // a, ba
  EXPECT_EQ(t->encode("aab"), (Ids{263, 260}));     // aa and ab: the better score
  EXPECT_EQ(t->encode("aaa"), (Ids{263, 259}));     // equals: the leftmost
  EXPECT_EQ(t->encode("xy"), (Ids{264}));           // its characters are no pieces
  EXPECT_EQ(t->encode("x"), (Ids{3 + 'x'}));
  EXPECT_EQ(t->encode("aUUb"), (Ids{259, 265, 260}));
  EXPECT_EQ(t->add_bos(), 1);
}

TEST(SentencePiece, WhereTheDummyPrefixStands) {
  const std::string model = sentencepiece_bytes({{kMark, -1, 1}, {"a", -2, 1}}, true);
  const Ids each = {259, 260, 2, 259, 260}, first = {259, 260, 2, 260}, never = {260, 2, 260};
  const auto encode = [&](const std::string& config) {
    return load_files({{"tokenizer.model", model}, {"tokenizer_config.json", config}})
        .value()
        ->encode_with_special("a</s>a");
  };
  const std::string added = R"("added_tokens_decoder": {"2": {"content": "</s>", "special": true}})";
  EXPECT_EQ(encode("{" + added + "}"), each);
  EXPECT_EQ(encode(R"({"legacy": false, )" + added + "}"), first);
  EXPECT_EQ(encode(R"({"add_prefix_space": false, )" + added + "}"), never);
}

TEST(SentencePiece, BadFiles) {
  const auto error = [](const std::string& model) { return error_of({{"tokenizer.model", model}}); };
  const std::string good = sentencepiece_bytes({{"a", -1, 1}}, false);
  EXPECT_EQ(error(""), "[tokenizer.model] holds no pieces");
  EXPECT_EQ(error("not a model"), "[tokenizer.model] is damaged or truncated: its protobuf fields don't end where it does");
  for (const size_t keep : {good.size() - 1, good.size() / 2, size_t{1}}) EXPECT_NE(error(good.substr(0, keep)), "no error");
  const auto with = [&](const std::string& fields) { return error(sentencepiece_bytes({{"a", -1, 1}}, false, fields)); };
  EXPECT_EQ(with(std::string("\x12\x02\x18\x01", 4)), "[tokenizer.model] model type UNIGRAM is not supported; expected BPE");
  EXPECT_EQ(with(std::string("\x1A\x0B\x0A\x04nfkc\x12\x03" "abc", 13)),
            "[tokenizer.model] the normalizer \"nfkc\" is not supported; expected identity");
  EXPECT_EQ(with(std::string("\x1A\x02\x20\x01", 4)), "[tokenizer.model] remove_extra_whitespaces is not supported");
  EXPECT_EQ(with(std::string("\x1A\x02\x28\x00", 4)), "[tokenizer.model] escape_whitespaces off is not supported");
  EXPECT_NE(with(std::string("\x12\x03\x98\x02\x00", 5)).find("byte_fallback"), std::string::npos);
  EXPECT_NE(error(sentencepiece_bytes({{"a", -1, 1}, {"a", -2, 1}}, false)).find("stands there twice"), std::string::npos);
  EXPECT_NE(error(sentencepiece_bytes({{"", -1, 1}}, false)).find("is empty"), std::string::npos);
  EXPECT_NE(error(sentencepiece_bytes({{"\xFF", -1, 1}}, false)).find("UTF-8"), std::string::npos);
  EXPECT_NE(error(sentencepiece_bytes({{"a", -1, 9}}, false)).find("unknown type 9"), std::string::npos);
  EXPECT_NE(error(sentencepiece_bytes({{"a", -1, 5}}, false)).find("UNUSED"), std::string::npos);
  EXPECT_NE(error(sentencepiece_bytes({{"a", std::numeric_limits<float>::quiet_NaN(), 1}}, false)).find("score"),
            std::string::npos);
  EXPECT_NE(error(sentencepiece_bytes({{std::string(5000, 'a'), -1, 1}}, false)).find("5000 bytes long"), std::string::npos);
}

// A SentencePiece model as the tokenizers library writes it, in both ways of saying the prefix.
std::string converted(const std::string& normalizer, const std::string& pre_tokenizer, const std::string& decoder) {
  Json vocab = Json::object();
  int id = 0;
  for (const char* token : {"<unk>", "<s>", "</s>"}) vocab.set(token, id++);
  for (int byte = 0; byte < 256; ++byte) {
    char spelling[8];
    std::snprintf(spelling, sizeof spelling, "<0x%02X>", byte);
    vocab.set(spelling, id++);
  }
  for (const char* token : {kMark, "a", "b", "\xE2\x96\x81" "a", "ab"}) vocab.set(token, id++);
  return R"({"added_tokens": [{"id": 2, "content": "</s>", "special": true}], "normalizer": )" + normalizer +
         R"(, "pre_tokenizer": )" + pre_tokenizer + R"(, "decoder": )" + decoder +
         R"(, "model": {"type": "BPE", "byte_fallback": true, "vocab": )" + vocab.dump() +
         R"(, "merges": [["▁", "a"], ["a", "b"]]}})";
}

TEST(TokenizerJson, ConvertedSentencePiece) {
  const std::string strip = R"({"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"},
      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})";
  const auto prepend = load_files({{"tokenizer.json", converted(R"({"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})",
                                                                "null", strip)}})
                           .value();
  EXPECT_EQ(prepend->encode_with_special("a</s> ab"), (Ids{262, 2, 259, 262, 260 + 1}));
  EXPECT_EQ(prepend->encode("\xC3\xA9"), (Ids{259, 3 + 0xC3, 3 + 0xA9}));
  EXPECT_EQ(prepend->decode(Ids{262, 2, 259, 262}), "a  a");

  const auto metaspace = [&](const std::string& fields) {
    return load_files({{"tokenizer.json", converted("null", R"({"type": "Metaspace", "replacement": "▁", )" + fields + "}",
                                                    R"({"type": "Metaspace"})")}}).value();
  };
  EXPECT_EQ(metaspace(R"("prepend_scheme": "first", "split": false)")->encode_with_special("a</s>a"), (Ids{262, 2, 260}));
  EXPECT_EQ(metaspace(R"("prepend_scheme": "always", "split": false)")->encode_with_special("a</s> a"), (Ids{262, 2, 262}));
  const auto never = metaspace(R"("prepend_scheme": "never", "split": true)");
  EXPECT_EQ(never->encode("a a"), (Ids{260, 262}));
  EXPECT_EQ(never->decode(Ids{262}), " a");
}

}  // namespace
}  // namespace tessera
