// tokenizer.json and, behind the first NUL byte, tokenizer_config.json: any bytes either load or are refused, and what
// loads can encode and decode.
#include <algorithm>
#include <cstdint>
#include <string>

#include "core/json.h"
#include "text/tokenizer_files.h"
#include "fuzz/use_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t split = std::min(input.find('\0'), input.size());
  const auto json = tessera::Json::parse(input.substr(0, split));
  if (!json.ok()) return 0;
  tessera::TokenizerConfig config;
  if (split < input.size()) {
    const auto more = tessera::Json::parse(input.substr(split + 1));
    if (!more.ok() || !tessera::parse_tokenizer_config(*more, &config).ok()) return 0;
  }
  auto read = tessera::read_tokenizer_json(*json, config);
  if (read.ok()) tessera::fuzz::use_tokenizer(std::move(*read));
  return 0;
}
