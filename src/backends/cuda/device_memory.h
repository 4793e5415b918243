#pragma once

#include <cstdint>

namespace tessera::cuda {

/// Free memory of a device in bytes as the driver's management library (libnvidia-ml.so.1) counts it: asking needs no
/// context, whose own memory would be missing from the answer. Where the library is not there, `otherwise`.
int64_t free_bytes(int device, int64_t otherwise);

}  // namespace tessera::cuda
