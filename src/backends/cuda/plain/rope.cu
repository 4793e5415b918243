#include "ops/rope.h"

#include <algorithm>
#include <cmath>

#include "backends/cuda/plain/plain.h"
#include "backends/cuda/plain/portable.h"

namespace tessera::cuda::plain {
namespace {

constexpr int kThreads = 64;
constexpr int kMaxHalf = 128;

/// Frequencies of the two regimes from the host; only dynamic NTK past max_position depends on each token's length.
struct RopeKernelParams {
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

/// As ops/rope.cc: the base in double, rounded to float, its powers in float.
TESSERA_DEVICE float dynamic_frequency(const RopeKernelParams& p, int64_t length, int i) {
  const double d = 2.0 * p.half;
  const double growth = p.factor * static_cast<double>(length) / static_cast<double>(p.threshold) - (p.factor - 1);
  const auto base = static_cast<float>(p.base * pow(growth, d / (d - 2)));
  return 1.0f / powf(base, static_cast<float>(2 * i) / static_cast<float>(2 * p.half));
}

TESSERA_KERNEL(kThreads) rope_kernel(RopeKernelParams p) {
  const int64_t token = block_x();
  const int64_t length = p.rope_lengths[token];
  for (int i = thread_id(); i < p.half; i += kThreads) {
    float frequency = p.normal[i];
    if (length > p.threshold) frequency = p.dynamic ? dynamic_frequency(p, length, i) : p.stretched[i];
    const float angle = static_cast<float>(p.positions[token]) * frequency;
    p.out[token * p.stride + i] = cosf(angle) * p.attention_scale;
    p.out[token * p.stride + p.half + i] = sinf(angle) * p.attention_scale;
  }
}

}  // namespace

void rope_angles(Stream& stream, const RopeAnglesArgs& args) {
  const RopeParams& params = *args.params;
  RopeKernelParams p{};
  p.half = params.head_dim / 2;
  TESSERA_CHECK(p.half <= kMaxHalf, "[rope_angles] head_dim " + std::to_string(params.head_dim) + " > 256");
  p.threshold = INT64_MAX;
  if (params.kind == RopeKind::kDynamicNtk) p.threshold = params.max_position;
  if (params.kind == RopeKind::kLongRope) p.threshold = params.original_max_position;
  const std::vector<float> normal = rope_inverse_frequencies(params, 0);
  std::copy(normal.begin(), normal.end(), p.normal);
  if (params.kind == RopeKind::kLongRope) {
    const std::vector<float> stretched = rope_inverse_frequencies(params, p.threshold + 1);
    std::copy(stretched.begin(), stretched.end(), p.stretched);
  }
  p.positions = args.positions.ptr<int>();
  p.rope_lengths = args.rope_lengths.ptr<int>();
  p.out = args.out.ptr<float>();
  p.stride = args.out.row_stride;
  p.base = params.base;
  p.factor = params.factor;
  p.dynamic = params.kind == RopeKind::kDynamicNtk;
  p.attention_scale = params.attention_scale;
  launch(stream, "plain_rope_angles", {static_cast<unsigned>(args.positions.elements())}, kThreads, 0, rope_kernel, p);
}

}  // namespace tessera::cuda::plain
