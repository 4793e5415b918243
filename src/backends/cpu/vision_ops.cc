#include "ops/vision_ops.h"

#include <cstring>

#include "backends/cpu/cpu_stream.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/linear.h"

namespace tessera::cpu {
namespace {

/// (u / 255 - mean) / std for every byte and channel, rounded to the products' type.
template <class T>
struct PixelValues {
  explicit PixelValues(const PatchEmbedArgs& args) {
    for (size_t c = 0; c < 3; ++c)
      for (int u = 0; u < 256; ++u)
        value[c][u] = from_float<T>((static_cast<float>(u) / 255.0f - args.mean[c]) / args.std[c]);
  }
  T value[3][256];
};

/// Row of patch (y, x) of one tile: channel, line, column.
template <class T>
void cut_patch(const PatchEmbedArgs& args, const PixelValues<T>& values, int64_t tile, int64_t y, int64_t x, T* out) {
  const int64_t side = args.tiles.dims[2], patch = args.patch;
  for (int64_t c = 0; c < 3; ++c) {
    const uint8_t* plane = args.tiles.ptr<const uint8_t>() + (tile * 3 + c) * side * side;
    for (int64_t i = 0; i < patch; ++i) {
      const uint8_t* line = plane + (y * patch + i) * side + x * patch;
      for (int64_t j = 0; j < patch; ++j) *out++ = values.value[c][line[j]];
    }
  }
}

void cut_patches(CpuStream& stream, const PatchEmbedArgs& args) {
  const int64_t edge = args.tiles.dims[2] / args.patch;
  dispatch_float(args.patches.dtype, "patch_embed", [&](auto zero) {
    using T = decltype(zero);
    const PixelValues<T> values(args);
    parallel_rows(stream, args.patches.rows(), edge, [&](int64_t begin, int64_t end, int) {
      for (int64_t p = begin; p < end; ++p)
        cut_patch<T>(args, values, p / (edge * edge), p / edge % edge, p % edge, args.patches.row<T>(p));
    });
  });
}

}  // namespace

void patch_embed(Stream& s, const PatchEmbedArgs& args) {
  CpuStream& stream = cpu_stream(s);
  const int64_t edge = args.tiles.dims[2] / args.patch, grid = edge * edge, hidden = args.out.row_elements();
  const Element type = element_of(args.out.dtype);
  cut_patches(stream, args);
  for (int64_t tile = 0; tile < args.tiles.rows(); ++tile) {
    // The positions join as the product's residual.
    run_product(stream, {.x = args.patches.slice(tile * grid, grid),
                         .weight = args.weight,
                         .bias = args.bias,
                         .residual = args.positions.slice(1, grid),
                         .out = args.out.slice(tile * (1 + grid) + 1, grid)});
    stream.leaf.epilogue_row({.c = args.class_token.ptr<const float>(),
                              .n = hidden,
                              .residual = args.positions.data,
                              .out = args.out.slice(tile * (1 + grid), 1).data,
                              .out_type = type});
  }
}

void pixel_shuffle(Stream& s, const PixelShuffleArgs& args) {
  CpuStream& stream = cpu_stream(s);
  const int64_t hidden = args.x.row_elements(), half = args.side / 2, folded = half * half;
  const int64_t tokens = 1 + args.side * args.side;
  const Element x_type = element_of(args.x.dtype), out_type = element_of(args.out.dtype);
  parallel_rows(stream, args.out.rows(), 4, [&](int64_t begin, int64_t end, int thread) {
    Scratch& scratch = stream.scratch_of(thread);
    scratch.reset();
    float* row = scratch.take<float>(4 * hidden);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t tile = r / folded, major = r % folded / half, minor = r % half;
      const int64_t y = args.version == 2 ? major : minor, x = args.version == 2 ? minor : major;
      for (int64_t a = 0; a < 2; ++a)
        for (int64_t b = 0; b < 2; ++b) {
          const int64_t from = tile * tokens + 1 + (2 * y + a) * args.side + 2 * x + b;
          stream.leaf.load_row(args.x.slice(from, 1).data, x_type, hidden, row + (2 * a + b) * hidden);
        }
      void* out = args.out.slice(r, 1).data;
      if (args.norm_weight)
        stream.leaf.norm_row({.layer = true,
                              .x = row,
                              .n = 4 * hidden,
                              .weight = args.norm_weight.ptr<const float>(),
                              .bias = args.norm_bias.ptr<const float>(),
                              .eps = args.eps,
                              .out = out,
                              .out_type = out_type});
      else
        stream.leaf.store_row(row, 4 * hidden, 1.0f, out, out_type);
    }
  });
}

}  // namespace tessera::cpu
