// One line of `tokenize --input`: any bytes are an item or a refusal.
#include <cstdint>
#include <string_view>

#include "cli/tokenize_item.h"
#include "core/json.h"
#include "text/tokenizer_data.h"
#include "text/tokenizer_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  static const auto kTokenizer = [] {
    Json vocab = Json::object();
    for (int byte = 0; byte < 256; ++byte)
      vocab.as_object().emplace_back(stand_ins_of_bytes(std::string(1, static_cast<char>(byte))), byte);
    return Tokenizer::from_data(read_vocab_and_merges(vocab, "", {}).value());
  }();
  const auto item = cli::parse_tokenize_item({reinterpret_cast<const char*>(data), size}, *kTokenizer);
  if (!item.ok()) return 0;
  const auto ids = item->text ? kTokenizer->encode(*item->text) : item->ids;
  cli::tokenize_result(*item, ids, *kTokenizer).dump();
  return 0;
}
