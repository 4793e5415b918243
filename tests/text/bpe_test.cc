#include <gtest/gtest.h>

#include <random>

#include "text/bpe_merges.h"
#include "text/pre_tokenizer.h"
#include "text/unicode.h"

namespace tessera {
namespace {

// The definition: join the pair of lowest rank, the leftmost of equals, until there is none.
std::vector<int32_t> merge_by_definition(const MergeTable& table, std::vector<int32_t> symbols) {
  for (;;) {
    int best = -1;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto* merge = table.find(symbols[i], symbols[i + 1]);
      if (merge && (best < 0 || merge->rank < table.find(symbols[best], symbols[best + 1])->rank))
        best = static_cast<int>(i);
    }
    if (best < 0) return symbols;
    symbols[best] = table.find(symbols[best], symbols[best + 1])->result;
    symbols.erase(symbols.begin() + best + 1);
  }
}

TEST(MergeTable, EqualsTheDefinitionOnRandomRules) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    std::vector<MergeRule> rules;
    int32_t next = 4;
    for (int i = 0; i < 20; ++i) {
      const auto symbol = [&] { return static_cast<int32_t>(random() % static_cast<unsigned>(next)) - 1; };
      const int32_t rank = static_cast<int32_t>(random() % 12);  // equal ranks occur, as in SentencePiece models
      rules.push_back({symbol(), symbol(), rank, next++});
    }
    const MergeTable table(rules);
    std::vector<int32_t> symbols(random() % 120);
    for (int32_t& symbol : symbols) symbol = static_cast<int32_t>(random() % 4) - 1;
    std::vector<int32_t> merged = symbols;
    table.apply(&merged);
    EXPECT_EQ(merged, merge_by_definition(table, symbols));
  }
}

TEST(MergeTable, LaterRuleForAPairCounts) {
  const MergeTable table(std::vector<MergeRule>{{1, 2, 0, 3}, {1, 2, 5, 4}});
  EXPECT_EQ(table.find(1, 2)->result, 4);
  EXPECT_EQ(table.find(2, 1), nullptr);
  EXPECT_EQ(MergeTable().find(1, 2), nullptr);
}

std::vector<std::string> cuts(PreTokenizer kind, std::string_view text) {
  std::vector<std::string> found;
  for (size_t at = 0; at < text.size();) {
    const size_t length = next_cut(kind, text, at);
    found.emplace_back(text.substr(at, length));
    at += length;
  }
  return found;
}
using Cuts = std::vector<std::string>;

TEST(PreTokenizer, Qwen2) {
  EXPECT_EQ(cuts(PreTokenizer::kQwen2, "I'Ll don'\xC5\xBF we've 'tis"),
            (Cuts{"I", "'Ll", " don", "'\xC5\xBF", " we", "'ve", " '", "tis"}));
  EXPECT_EQ(cuts(PreTokenizer::kQwen2, "a  b\t\tc  "), (Cuts{"a", " ", " b", "\t", "\tc", "  "}));
  EXPECT_EQ(cuts(PreTokenizer::kQwen2, "x \n\n  y\r\nz"), (Cuts{"x", " \n\n", " ", " y", "\r\n", "z"}));
  EXPECT_EQ(cuts(PreTokenizer::kQwen2, "1234 !!\n?a"), (Cuts{"1", "2", "3", "4", " !!\n", "?a"}));
  EXPECT_EQ(cuts(PreTokenizer::kQwen2, "\xC2\xA0x\xC2\xA0\xC2\xA0!"), (Cuts{"\xC2\xA0x", "\xC2\xA0", "\xC2\xA0", "!"}));
}

TEST(PreTokenizer, Llama3TakesThreeDigits) {
  EXPECT_EQ(cuts(PreTokenizer::kLlama3, "1234567 8"), (Cuts{"123", "456", "7", " ", "8"}));
}

TEST(PreTokenizer, Gpt2) {
  EXPECT_EQ(cuts(PreTokenizer::kGpt2, "I'll 'LL  ab12 !\n x"),
            (Cuts{"I", "'ll", " '", "LL", " ", " ab", "12", " !", "\n", " x"}));
}

TEST(PreTokenizer, UnknownExpressionsAreNotGuessed) {
  EXPECT_FALSE(pre_tokenizer_by_regex(R"(\s+|\S+)").has_value());
  EXPECT_FALSE(pre_tokenizer_by_regex("").has_value());
}

TEST(Unicode, StepsOfBrokenText) {
  const auto lengths = [](std::string_view text) {
    std::vector<std::pair<int, int>> steps;
    for (size_t at = 0; at < text.size();) {
      const Utf8Step step = read_utf8(text, at);
      steps.emplace_back(step.length, step.kind);
      at += step.length;
    }
    return steps;
  };
  using Steps = std::vector<std::pair<int, int>>;
  const int ok = Utf8Step::kCharacter, bad = Utf8Step::kBroken, open = Utf8Step::kIncomplete;
  EXPECT_EQ(lengths("a\xC3\xA9"), (Steps{{1, ok}, {2, ok}}));
  EXPECT_EQ(lengths("\xF0\x9F\x98"), (Steps{{3, open}}));
  EXPECT_EQ(lengths("\xE4\xBD" "a"), (Steps{{2, bad}, {1, ok}}));
  EXPECT_EQ(lengths("\xED\xA0\x80"), (Steps{{1, bad}, {1, bad}, {1, bad}}));
  EXPECT_EQ(lengths("\xC0\x80\xF5"), (Steps{{1, bad}, {1, bad}, {1, bad}}));
  EXPECT_EQ(lengths("\xF4\x90"), (Steps{{1, bad}, {1, bad}}));
  EXPECT_EQ(replace_invalid_utf8("x\xE4\xBD"), "x\xEF\xBF\xBD");
}

TEST(Unicode, ReadingAndWritingAreInverse) {
  for (char32_t code = 0; code <= 0x10FFFF; code += code < 0x3000 ? 1 : 97) {
    if (code >= 0xD800 && code <= 0xDFFF) continue;
    std::string text;
    append_utf8(&text, code);
    const Utf8Step step = read_utf8(text, 0);
    EXPECT_EQ(step.code, code);
    EXPECT_EQ(step.length, text.size());
  }
}

TEST(Unicode, NormalizationFormC) {
  EXPECT_EQ(normalize_nfc("e\xCC\x81"), "\xC3\xA9");
  EXPECT_EQ(normalize_nfc("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB"), "\xED\x95\x9C");           // Hangul jamo
  EXPECT_EQ(normalize_nfc("q\xCC\x87\xCC\xA3"), "q\xCC\xA3\xCC\x87");                         // order of marks
  EXPECT_EQ(normalize_nfc("\xE2\x84\xA6"), "\xCE\xA9");                                       // singleton
  EXPECT_EQ(normalize_nfc("\xEF\xAC\x81"), "\xEF\xAC\x81");                                   // no compatibility forms
  EXPECT_EQ(normalize_nfc("\xE0\xA5\x98"), "\xE0\xA4\x95\xE0\xA4\xBC");                       // excluded composition
}

TEST(Unicode, MarksByTheMillionAreSortedInTime) {
  std::string text = "a";
  constexpr int kPairs = 200000;
  for (int i = 0; i < kPairs; ++i) text += "\xCC\x87\xCC\xA3";  // dot above, dot below
  const std::string normalized = normalize_nfc(text);
  EXPECT_EQ(normalized.size(), text.size());  // "a" and a dot below make U+1EA1: 3 bytes for 3
  EXPECT_EQ(normalized.substr(0, 5), "\xE1\xBA\xA1\xCC\xA3");
  EXPECT_EQ(normalized.substr(normalized.size() - 2), "\xCC\x87");
}

TEST(Unicode, Classes) {
  EXPECT_EQ(char_class(0x3B1), CharClass::kLetter);
  EXPECT_EQ(char_class(0xB2), CharClass::kNumber);
  EXPECT_EQ(char_class(0x2167), CharClass::kNumber);
  EXPECT_EQ(char_class(0x300), CharClass::kOther);
  for (char32_t space : {0x9, 0xA, 0xB, 0xC, 0xD, 0x20, 0x85, 0xA0, 0x1680, 0x2000, 0x200A, 0x2028, 0x2029, 0x202F,
                         0x205F, 0x3000})
    EXPECT_EQ(char_class(space), CharClass::kSpace) << static_cast<uint32_t>(space);
  for (char32_t other : {0x200B, 0x1C, 0x1F, 0x180E, 0xFEFF})
    EXPECT_EQ(char_class(other), CharClass::kOther) << static_cast<uint32_t>(other);
}

}  // namespace
}  // namespace tessera
