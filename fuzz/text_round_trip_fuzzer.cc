// Any text through a small tokenizer of each family: the text comes back, whole or streamed with stop strings, and
// cuts cover it. The first byte chooses the tokenizer.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "core/json.h"
#include "text/detokenizer.h"
#include "text/stop_strings.h"
#include "text/tokenizer.h"
#include "text/tokenizer_files.h"
#include "text/unicode.h"

namespace {
using namespace tessera;

std::unique_ptr<Tokenizer> byte_level(const char* tokenizer_class) {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte)
    vocab.as_object().emplace_back(stand_ins_of_bytes(std::string(1, static_cast<char>(byte))), byte);
  int id = 256;
  for (const char* token : {"ab", "abc", "\xC4\xA0" "a", "aa", "aaaa"}) vocab.as_object().emplace_back(token, id++);
  TokenizerConfig config;
  config.tokenizer_class = tokenizer_class;
  config.added.push_back({.id = 300, .content = "<|x|>", .special = true, .rstrip = true});
  auto data = read_vocab_and_merges(vocab, "a b\nab c\n\xC4\xA0 a\na a\naa aa\n", config);
  return Tokenizer::from_data(std::move(data).value());
}

std::unique_ptr<Tokenizer> sentencepiece() {
  std::string model;
  const auto add = [&](const std::string& spelling, char type) {
    model += std::string("\x0A") + static_cast<char>(spelling.size() + 4) + "\x0A" + static_cast<char>(spelling.size()) +
             spelling + "\x18" + type;
  };
  add("<unk>", 2);
  for (int byte = 0; byte < 256; ++byte) {
    constexpr char kHex[] = "0123456789ABCDEF";
    add(std::string("<0x") + kHex[byte / 16] + kHex[byte % 16] + ">", 6);
  }
  for (const char* piece : {"a", "b", "ab", "\xE2\x96\x81", "\xE2\x96\x81" "a", "aa", "xyz"}) add(piece, 1);
  add("uu", 4);
  model += std::string("\x12\x05\x18\x02\x98\x02\x01", 7) + std::string("\x1A\x04\x18\x01\x20\x00", 6);
  return Tokenizer::from_data(read_sentencepiece_model(model, {}).value());
}

// Each U+2581 is a space to SentencePiece, whoever wrote it.
std::string expected_text(std::string_view given, int kind) {
  const std::string text = replace_invalid_utf8(given);
  return kind == 0 ? normalize_nfc(text) : kind == 1 ? text : mark_to_space(text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::unique_ptr<Tokenizer> kTokenizers[] = {byte_level("Qwen2Tokenizer"), byte_level("GPT2Tokenizer"),
                                                           sentencepiece()};
  if (size == 0) return 0;
  const int kind = data[0] % 3;
  const Tokenizer& tokenizer = *kTokenizers[kind];
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto ids = tokenizer.encode(text);
  const std::string expected = expected_text(text, kind);
  if (tokenizer.decode(ids) != expected) std::abort();
  tokenizer.decode(tokenizer.encode_with_special(text));

  Detokenizer detokenizer(tokenizer);
  StopStrings stops({"ab", "\n\n", "aaab"});
  std::string shown;
  bool stopped = false;
  for (size_t i = 0; i <= ids.size() && !stopped; ++i) {
    const std::string piece = i < ids.size() ? detokenizer.push(ids[i]) : detokenizer.finish();
    if (!is_valid_utf8(piece) || detokenizer.held_bytes() > 3) std::abort();
    auto result = stops.push(piece);
    shown += result.text;
    stopped = result.stopped;
  }
  if (!stopped) shown += stops.finish();
  if (expected.compare(0, shown.size(), shown) != 0 || (!stopped && shown != expected)) std::abort();
  return 0;
}
