// Data URLs: whatever the text, a picture's bytes or one line that says what is wrong.
#include <cstdint>
#include <string_view>

#include "core/base64.h"
#include "core/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view url(reinterpret_cast<const char*>(data), size);
  const auto bytes = tessera::decode_data_url(url, 1000);
  if (bytes.ok()) {
    TESSERA_CHECK(bytes->size() <= 1002 && bytes->size() < size, "more bytes than the URL can hold");
  } else {
    TESSERA_CHECK(bytes.status().message().find('\n') == std::string::npos, "an error of several lines");
  }
  return 0;
}
