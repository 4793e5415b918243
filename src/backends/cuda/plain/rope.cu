#include <algorithm>
#include <cmath>

#include "backends/cuda/plain/angles.h"
#include "backends/cuda/plain/plain.h"

namespace tessera::cuda::plain {
namespace {

constexpr int kThreads = 64;

TESSERA_KERNEL(kThreads) rope_kernel(AngleParams p) {
  const int64_t token = block_x(), length = p.rope_lengths[token];
  const int position = p.positions[token];
  for (int i = thread_id(); i < p.half; i += kThreads) leave_angle(p, token, position, length, i);
}

}  // namespace

AngleParams angle_params(const RopeAnglesArgs& args) {
  const RopeParams& params = *args.params;
  AngleParams p{};
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
  return p;
}

void rope_angles(Stream& stream, const RopeAnglesArgs& args) {
  launch(stream, "plain_rope_angles", {static_cast<unsigned>(args.positions.elements())}, kThreads, 0, rope_kernel, angle_params(args));
}

}  // namespace tessera::cuda::plain
