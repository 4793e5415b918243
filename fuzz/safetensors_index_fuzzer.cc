// model.safetensors.index.json: accepted file names stay inside the checkpoint's directory.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "models/tensor_store.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = tessera::Json::parse(text, {.max_depth = 8, .max_bytes = 1 << 16});
  if (!json.ok()) return 0;
  const auto files = tessera::shard_files(*json, "fuzz");
  if (!files.ok()) {
    if (files.status().message().find('\n') != std::string::npos) std::abort();
    return 0;
  }
  if (files->empty()) std::abort();
  for (const std::string& file : *files)
    if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos) std::abort();
  return 0;
}
