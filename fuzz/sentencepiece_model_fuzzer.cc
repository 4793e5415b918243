// tokenizer.model: any bytes either load or are refused, and what loads can encode and decode.
#include <cstdint>
#include <string_view>

#include "fuzz/use_tokenizer.h"
#include "text/tokenizer_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto read = tessera::read_sentencepiece_model({reinterpret_cast<const char*>(data), size}, {});
  if (read.ok()) tessera::fuzz::use_tokenizer(std::move(*read));
  return 0;
}
