#include <gtest/gtest.h>

#include <random>

#include "tests/text/text_fixtures.h"
#include "text/detokenizer.h"
#include "text/stop_strings.h"
#include "text/tokenizer_data.h"
#include "text/unicode.h"

namespace tessera {
namespace {

std::unique_ptr<Tokenizer> byte_level() {
  return testing::load_files({{"tokenizer.json", testing::small_tokenizer_json().dump()}}).value();
}

std::unique_ptr<Tokenizer> byte_fallback() {
  return testing::load_files({{"tokenizer.model", testing::sentencepiece_bytes({{"\xE2\x96\x81", -1, 1}, {"a", -2, 1}},
                                                                               /*dummy_prefix=*/true)}})
      .value();
}

TEST(Detokenizer, HoldsBackWhatCouldBecomeACharacter) {
  const auto tokenizer = byte_level();
  Detokenizer stream(*tokenizer);
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(260), "");  // a control token changes nothing
  EXPECT_EQ(stream.push(0x98), "");
  EXPECT_EQ(stream.held_bytes(), 3u);
  EXPECT_EQ(stream.push(0x80), "\xF0\x9F\x98\x80");
  EXPECT_EQ(stream.push(0xE4), "");
  EXPECT_EQ(stream.push(0xBD), "");
  EXPECT_EQ(stream.push('a'), "\xEF\xBF\xBD" "a");  // one for the broken sequence
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.finish(), "");
  EXPECT_EQ(stream.push(-1) + stream.push(9999), "");
}

TEST(Detokenizer, SentencePieceReplacesEachByteAndDropsTheFirstMark) {
  const auto tokenizer = byte_fallback();
  const auto byte = [](int value) { return 3 + value; };
  const int32_t mark = *tokenizer->token_id("\xE2\x96\x81");
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{1, mark, mark, 259 + 1}), " a");
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{byte(0xE4), byte(0xBD), 260}), "\xEF\xBF\xBD\xEF\xBF\xBD" "a");
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{byte(0x20), mark}), "  ");  // a byte piece is no mark
}

TEST(Detokenizer, PrintsTheControlTokensThatWereAskedFor) {
  const auto tokenizer = byte_level();
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{'x', 260, 'y'}), "xy");
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{'x', 260, 'y'}, {.visible_control = {260}}), "x<|end|>y");
}

TEST(Detokenizer, WhatLeavesIsAlwaysWholeUtf8) {
  const auto tokenizer = byte_level();
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    Detokenizer stream(*tokenizer);
    std::string bytes, text;
    for (int i = 0; i < 50; ++i) {
      const int32_t id = static_cast<int32_t>(random() % 2 ? random() % 256 : 0x80 + random() % 0x80);
      bytes += tokenizer->token_bytes(id);
      const std::string piece = stream.push(id);
      EXPECT_TRUE(is_valid_utf8(piece));
      text += piece;
    }
    text += stream.finish();
    EXPECT_EQ(text, replace_invalid_utf8(bytes));
  }
}

std::string run(StopStrings* stops, const std::vector<std::string>& pieces, bool* stopped) {
  std::string text;
  *stopped = false;
  for (const std::string& piece : pieces) {
    StopStrings::Result result = stops->push(piece);
    text += result.text;
    if ((*stopped = result.stopped)) return text;
  }
  return text + stops->finish();
}

TEST(StopStrings, HoldsBackOnlyWhatCouldStop) {
  StopStrings stops({"END", "\n\n"});
  EXPECT_EQ(stops.push("abc E").text, "abc ");
  EXPECT_EQ(stops.push("N").text, "");
  EXPECT_EQ(stops.push("X\n").text, "ENX");
  EXPECT_EQ(stops.push("").text, "");
  const auto result = stops.push("\nmore");
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.index, 1);
  EXPECT_EQ(result.text, "");
}

TEST(StopStrings, TheLongestOfThoseThatEndTogether) {
  StopStrings stops({"b", "aab"});
  const auto result = stops.push("xaab");
  EXPECT_EQ(result.index, 1);
  EXPECT_EQ(result.text, "x");
}

TEST(StopStrings, WithoutAnyNothingIsHeld) {
  StopStrings stops({"", ""});
  EXPECT_TRUE(stops.empty());
  EXPECT_EQ(stops.push("text").text, "text");
}

TEST(StopStrings, EqualsAPlainSearchHoweverTheTextIsCut) {
  std::mt19937 random(11);
  for (int round = 0; round < 3000; ++round) {
    const auto letters = [&](size_t length) {
      std::string text;
      while (text.size() < length) text += static_cast<char>('a' + random() % 2);
      return text;
    };
    std::vector<std::string> list(1 + random() % 3);
    for (std::string& stop : list) stop = letters(1 + random() % 5);
    const std::string text = letters(random() % 30);
    size_t first_end = std::string::npos, cut = text.size();
    for (const std::string& stop : list) {
      const size_t at = text.find(stop);
      if (at == std::string::npos) continue;
      const size_t end = at + stop.size();
      if (first_end == std::string::npos || end < first_end || (end == first_end && at < cut)) {
        first_end = end;
        cut = at;
      }
    }
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t length = random() % 4;
      pieces.push_back(text.substr(at, length));
      at += length;
    }
    StopStrings stops(list);
    bool stopped = false;
    EXPECT_EQ(run(&stops, pieces, &stopped), text.substr(0, cut));
    EXPECT_EQ(stopped, first_end != std::string::npos);
  }
}

}  // namespace
}  // namespace tessera
