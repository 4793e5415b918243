#pragma once

#include "backends/cuda/plain/portable.h"
#include "ops/rope.h"

namespace tessera::cuda::plain {

inline constexpr int kMaxHalf = 128;

/// Frequencies of the two regimes from the host; only dynamic NTK past max_position depends on each token's length.
struct AngleParams {
  float normal[kMaxHalf];
  float stretched[kMaxHalf];
  const int* positions;
  const int* rope_lengths;
  float* out;
  int64_t stride;
  int64_t threshold;  ///< longer rope lengths take the stretched regime
  double base, factor;
  int half;
  bool dynamic;
  float attention_scale;
};

AngleParams angle_params(const RopeAnglesArgs& args);

#if defined(TESSERA_DEVICE)

/// As ops/rope.cc: the base in double, rounded to float, its powers in float.
TESSERA_DEVICE float dynamic_frequency(const AngleParams& p, int64_t length, int i) {
  const double d = 2.0 * p.half;
  const double growth = p.factor * static_cast<double>(length) / static_cast<double>(p.threshold) - (p.factor - 1);
  const auto base = static_cast<float>(p.base * pow(growth, d / (d - 2)));
  return 1.0f / powf(base, static_cast<float>(2 * i) / static_cast<float>(2 * p.half));
}

/// Cosine and sine i of a token at `position`.
TESSERA_DEVICE void leave_angle(const AngleParams& p, int64_t token, int position, int64_t length, int i) {
  float frequency = p.normal[i];
  if (length > p.threshold) frequency = p.dynamic ? dynamic_frequency(p, length, i) : p.stretched[i];
  const float angle = static_cast<float>(position) * frequency;
  p.out[token * p.stride + i] = cosf(angle) * p.attention_scale;
  p.out[token * p.stride + p.half + i] = sinf(angle) * p.attention_scale;
}

#endif

}  // namespace tessera::cuda::plain
