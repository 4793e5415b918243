#pragma once

#include <cstdint>
#include <vector>

#include "vision/image.h"

namespace tessera {

/// Which code resamples. All give the same bytes.
enum class ResizeIsa {
  kAuto,    // the best that the CPU has
  kPlain,   // portable C++; the reference of the others
  kAvx2,    // 16-bit multiply-add pairs, 8 rows at a time
  kAvx512,  // AVX-512 BW + VNNI, 8-bit dot products, 16 rows at a time
};

/// "plain", "avx2", "avx512" ("auto" for kAuto).
const char* resize_isa_name(ResizeIsa isa);
/// True when this CPU can run `isa`. kAuto and kPlain always can.
bool resize_isa_available(ResizeIsa isa);
/// The one that kAuto stands for on this CPU.
ResizeIsa best_resize_isa();

/// Resizes with Pillow 13's 8-bit bicubic, byte for byte: two separable passes in 22-bit fixed point with an
/// 8-bit picture between them, the vertical one first when that loses much more height than width.
/// Requires: a picture and target of at least 1 x 1, resize_isa_available(isa). Thread-safe.
Image resize_bicubic(const Image& image, int width, int height, ResizeIsa isa = ResizeIsa::kAuto);

}  // namespace tessera
