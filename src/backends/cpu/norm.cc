#include "ops/norm.h"

#include "backends/cpu/cpu_stream.h"
#include "backends/cpu/kernels.h"

namespace tessera::cpu {

void norm(Stream& s, const NormArgs& args) {
  CpuStream& stream = cpu_stream(s);
  const int64_t n = args.x.row_elements();
  // A few thousand elements a piece: less is not worth a hand-over between threads.
  const int64_t grain = std::max<int64_t>(1, 16384 / n);
  parallel_rows(stream, args.x.rows(), grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      stream.leaf.norm_row({
          .layer = args.kind == NormKind::kLayer,
          .x = args.x.slice(r, 1).data,
          .x_type = element_of(args.x.dtype),
          .n = n,
          .weight = args.weight.ptr<const float>(),
          .bias = args.bias.ptr<const float>(),
          .eps = args.eps,
          .out = args.out.slice(r, 1).data,
          .out_type = element_of(args.out.dtype),
      });
  });
}

void next_norm(Stream& s, const NormArgs& next, const Tensor& x) {
  if (!next.out) return;
  NormArgs args = next;
  args.x = x;
  norm(s, args);
}

}  // namespace tessera::cpu
