// A JSON Schema and, behind the first NUL byte, choices for a walk: any schema compiles or is refused, the mask and
// accept() agree at every step, and no walk gets stuck.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/json.h"
#include "text/json_grammar.h"
#include "text/tokenizer_files.h"

namespace {
using namespace tessera;

const Tokenizer& byte_tokenizer() {
  static const auto made = [] {
    Json vocab = Json::object();
    for (int byte = 0; byte < 256; ++byte)
      vocab.as_object().emplace_back(stand_ins_of_bytes(std::string(1, static_cast<char>(byte))), byte);
    vocab.as_object().emplace_back("{\"", 256);
    vocab.as_object().emplace_back("\":", 257);
    return Tokenizer::from_data(read_vocab_and_merges(vocab, "", {}).value());
  }();
  return *made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto kVocabulary = std::make_shared<const GrammarVocabulary>(byte_tokenizer());
  constexpr int32_t kEnd = 258;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t split = std::min(input.find('\0'), input.size());
  const auto schema = Json::parse(input.substr(0, split));
  if (!schema.ok()) return 0;
  const auto grammar = JsonGrammar::from_schema(*schema, kVocabulary);
  if (!grammar.ok()) return 0;
  auto constraint = (*grammar)->start({kEnd});
  uint32_t mask[9];
  for (const char choice : input.substr(std::min(split + 1, size))) {
    constraint->fill_mask(mask);
    int32_t allowed[288], count = 0;
    for (int32_t id = 0; id < 288; ++id)
      if (mask[id / 32] >> (id % 32) & 1) allowed[count++] = id;
    if (count == 0) std::abort();
    const int32_t id = allowed[static_cast<unsigned char>(choice) % count];
    if (!constraint->accept(id)) std::abort();
    if (constraint->finished()) break;
  }
  return 0;
}
