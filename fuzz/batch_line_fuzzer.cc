// A line of a batch file: every byte string is a request or a one-line error. Pictures' paths are not followed far: the
// directory does not exist.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "cli/batch_request.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tessera::EngineOptions options;
  options.model = "fuzz";
  options.max_image_bytes = 1 << 16;
  const tessera::cli::BatchLine line = tessera::cli::read_batch_line(
      std::string(reinterpret_cast<const char*>(data), size), "/nonexistent", {}, options);
  if (!line.request.ok() && line.request.status().message().find('\n') != std::string::npos) std::abort();
  return 0;
}
