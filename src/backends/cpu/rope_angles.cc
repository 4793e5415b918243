#include "ops/rope.h"

#include <cmath>

#include "backends/cpu/cpu_stream.h"
#include "backends/cpu/kernels.h"

namespace tessera::cpu {

void rope_angles(Stream& s, const RopeAnglesArgs& args) {
  CpuStream& stream = cpu_stream(s);
  const auto* positions = args.positions.ptr<const int32_t>();
  const auto* lengths = args.rope_lengths.ptr<const int32_t>();
  const RopeParams& params = *args.params;
  const int64_t half = params.head_dim / 2;
  parallel_rows(stream, args.positions.elements(), 64, [&](int64_t begin, int64_t end, int) {
    std::vector<float> frequencies;
    int64_t known_class = -1;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t rope = rope_class(params, lengths[t]);
      if (rope != known_class) frequencies = rope_inverse_frequencies(params, lengths[t]);
      known_class = rope;
      float* out = args.out.row<float>(t);
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(positions[t]) * frequencies[static_cast<size_t>(i)];
        out[i] = std::cos(angle) * params.attention_scale;
        out[half + i] = std::sin(angle) * params.attention_scale;
      }
    }
  });
}

}  // namespace tessera::cpu
