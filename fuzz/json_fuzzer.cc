// JSON text to value to text: what parses is dumped as text that parses to the same dump.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = tessera::Json::parse(text, {.max_depth = 64, .max_bytes = 1 << 20});
  if (!json.ok()) return 0;
  const std::string dumped = json->dump();
  const auto again = tessera::Json::parse(dumped);
  if (!again.ok() || again->dump() != dumped) std::abort();
  return 0;
}
