#include "vision/resize.h"

#include "core/check.h"
#include "vision/resample.h"
#include "vision/resample_kernels.h"

namespace tessera {

const char* resize_isa_name(ResizeIsa isa) {
  switch (isa) {
    case ResizeIsa::kAuto:
      return "auto";
    case ResizeIsa::kPlain:
      return "plain";
    case ResizeIsa::kAvx2:
      return "avx2";
    case ResizeIsa::kAvx512:
      return "avx512";
  }
  return "?";
}

bool resize_isa_available(ResizeIsa isa) {
#if defined(__x86_64__)
  if (isa == ResizeIsa::kAvx2) return __builtin_cpu_supports("avx2");
  if (isa == ResizeIsa::kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
  return isa == ResizeIsa::kAuto || isa == ResizeIsa::kPlain;
}

ResizeIsa best_resize_isa() {
  for (ResizeIsa isa : {ResizeIsa::kAvx512, ResizeIsa::kAvx2})
    if (resize_isa_available(isa)) return isa;
  return ResizeIsa::kPlain;
}

Image resize_bicubic(const Image& image, int width, int height, ResizeIsa isa) {
  TESSERA_CHECK(width >= 1 && height >= 1, "resize needs a target of at least one pixel");
  Image out{.width = width, .height = height};
  out.rgb.resize(out.row_bytes() * height);
  const ResampleTarget target{
      .width = width, .height = height, .row = [&](int y, const uint8_t* planar, size_t stride) {
        uint8_t* pixel = out.row(y);
        for (int x = 0; x < width; ++x, pixel += 3)
          for (int c = 0; c < 3; ++c) pixel[c] = planar[c * stride + x];
      }};
  resample(image, std::span(&target, 1), isa);
  return out;
}

}  // namespace tessera
