#include "fuzz/picture_fuzzing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return tessera::fuzz_picture({data, size}, {tessera::ImageFormat::kWebp});
}
