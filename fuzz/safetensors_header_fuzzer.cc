// A safetensors file's bytes: whatever the header says, accepted tensors lie inside the file, in order, without overlap.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "core/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data), size);
  const auto header = tessera::parse_safetensors(file, "fuzz");
  if (!header.ok()) {
    if (header.status().message().find('\n') != std::string::npos) std::abort();
    return 0;
  }
  uint64_t at = 0;
  for (const tessera::SafetensorsEntry& tensor : header->tensors) {
    if (tensor.begin < at || tensor.end < tensor.begin || tensor.end > size || tensor.elements() < 0) std::abort();
    if (tensor.dtype &&
        static_cast<uint64_t>(tensor.elements()) * tessera::size_of(*tensor.dtype) != tensor.end - tensor.begin)
      std::abort();
    at = tensor.end;
  }
  return 0;
}
