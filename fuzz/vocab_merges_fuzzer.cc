// vocab.json, merges.txt and added_tokens.json, parted by NUL bytes. A vocabulary of all bytes is put in front of the
// given one, so that inputs reach the encoder.
#include <algorithm>
#include <cstdint>
#include <string>

#include "core/json.h"
#include "fuzz/use_tokenizer.h"
#include "text/tokenizer_files.h"

namespace {

std::string_view take_part(std::string_view* rest) {
  const size_t split = std::min(rest->find('\0'), rest->size());
  const std::string_view part = rest->substr(0, split);
  rest->remove_prefix(std::min(split + 1, rest->size()));
  return part;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  tessera::Json vocab = tessera::Json::object();
  for (int byte = 0; byte < 256; ++byte)
    vocab.as_object().emplace_back(tessera::stand_ins_of_bytes(std::string(1, static_cast<char>(byte))), byte);
  const auto more = tessera::Json::parse(take_part(&rest));
  if (!more.ok()) return 0;
  if (more->is_object())
    for (const auto& member : more->as_object()) vocab.as_object().push_back(member);
  const std::string_view merges = take_part(&rest);
  tessera::TokenizerConfig config;
  if (const auto added = tessera::Json::parse(take_part(&rest)); added.ok())
    if (!tessera::parse_added_tokens(*added, &config).ok()) return 0;
  auto read = tessera::read_vocab_and_merges(vocab, merges, config);
  if (read.ok()) tessera::fuzz::use_tokenizer(std::move(*read));
  return 0;
}
