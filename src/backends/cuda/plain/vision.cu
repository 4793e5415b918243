#include "ops/vision_ops.h"

#include "backends/cuda/plain/epilogue_math.h"
#include "backends/cuda/plain/plain.h"
#include "backends/cuda/plain/portable.h"

namespace tessera::cuda::plain {

void product(Stream& stream, const LinearArgs& args, const EpilogueParams& end);

namespace {

constexpr int kThreads = 256;

struct PatchParams {
  const unsigned char* tiles;
  Elements out;
  int side, patch, columns, padded;  ///< 32 bits: divisions of 64 are a hundred instructions
  float mean[3], std[3];
};

/// One block a patch: columns ordered channel, y, x; padding columns are zero.
TESSERA_KERNEL(kThreads) patch_kernel(PatchParams p) {
  const int edge = p.side / p.patch, row = block_x();
  const int64_t tile = row / (edge * edge);
  const int y0 = row / edge % edge * p.patch, x0 = row % edge * p.patch;
  for (int c = thread_id(); c < p.padded; c += kThreads) {
    float v = 0;
    if (c < p.columns) {
      const int channel = c / (p.patch * p.patch), y = c / p.patch % p.patch, x = c % p.patch;
      const float u = static_cast<float>(p.tiles[((tile * 3 + channel) * p.side + y0 + y) * p.side + x0 + x]);
      v = (u / 255.0f - p.mean[channel]) / p.std[channel];
    }
    p.out.set(row, c, v);
  }
}

struct ClassParams {
  const float* token;
  const float* positions;
  Elements out;
  int64_t rows_per_tile, n;
};

TESSERA_KERNEL(kThreads) class_kernel(ClassParams p) {
  for (int64_t i = thread_id(); i < p.n; i += kThreads)
    p.out.set(block_x() * p.rows_per_tile, i, p.token[i] + p.positions[i]);
}

struct ShuffleParams {
  Elements x, out;
  const float* weight;
  const float* bias;
  int side, hidden;
  int version;
  float eps;

  TESSERA_DEVICE float get(int64_t row0, int i, int j, int c) const {
    const int part = c / hidden;  // 2 * row offset + column offset
    return x.get(row0 + (2 * i + part / 2) * side + 2 * j + part % 2, c % hidden);
  }
};

TESSERA_KERNEL(kThreads) shuffle_kernel(ShuffleParams p) {
  float* scratch = static_cast<float*>(dynamic_shared());
  const int edge = p.side / 2, out_row = block_x(), within = out_row % (edge * edge);
  const int64_t row0 = static_cast<int64_t>(out_row / (edge * edge)) * (1 + p.side * p.side) + 1;  // past the class token
  const int i = p.version == 1 ? within % edge : within / edge, j = p.version == 1 ? within / edge : within % edge;
  const int n = 4 * p.hidden;
  if (!p.weight) {
    for (int c = thread_id(); c < n; c += kThreads) p.out.set(out_row, c, p.get(row0, i, j, c));
    return;
  }
  float sum = 0;
  for (int c = thread_id(); c < n; c += kThreads) sum += p.get(row0, i, j, c);
  const float mean = block_sum(sum, scratch) / static_cast<float>(n);
  float squares = 0;
  for (int c = thread_id(); c < n; c += kThreads) {
    const float d = p.get(row0, i, j, c) - mean;
    squares += d * d;
  }
  const float inverse = 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(n) + p.eps);
  for (int c = thread_id(); c < n; c += kThreads)
    p.out.set(out_row, c, (p.get(row0, i, j, c) - mean) * inverse * p.weight[c] + (p.bias ? p.bias[c] : 0.0f));
}

}  // namespace

void cut_patches(Stream& stream, const PatchEmbedArgs& args, const Tensor& patches) {
  PatchParams p{};
  p.tiles = args.tiles.ptr<unsigned char>();
  p.out = elements(patches);
  p.side = static_cast<int>(args.tiles.dims[2]);
  p.patch = static_cast<int>(args.patch);
  p.columns = 3 * p.patch * p.patch;
  p.padded = static_cast<int>(patches.row_elements());
  for (size_t c = 0; c < 3; ++c) {
    p.mean[c] = args.mean[c];
    p.std[c] = args.std[c];
  }
  launch(stream, "plain_cut_patches", {static_cast<unsigned>(patches.rows())}, kThreads, 0, patch_kernel, p);
}

void class_rows(Stream& stream, const PatchEmbedArgs& args) {
  const ClassParams p{args.class_token.ptr<float>(), args.positions.ptr<float>(), elements(args.out),
                      args.positions.rows(), args.out.row_elements()};
  launch(stream, "plain_class_rows", {static_cast<unsigned>(args.tiles.rows())}, kThreads, 0, class_kernel, p);
}

void patch_embed(Stream& stream, const PatchEmbedArgs& args) {
  cut_patches(stream, args, args.patches);
  class_rows(stream, args);
  LinearArgs linear;
  linear.x = args.patches;
  linear.weight = args.weight;
  linear.bias = args.bias;
  linear.residual = args.positions;
  linear.out = args.out;
  EpilogueParams end = epilogue_params(linear);
  end.segment = args.positions.rows() - 1;
  product(stream, linear, end);
}

void pixel_shuffle(Stream& stream, const PixelShuffleArgs& args) {
  const ShuffleParams p{.x = elements(args.x),
                        .out = elements(args.out),
                        .weight = args.norm_weight.ptr<float>(),
                        .bias = args.norm_bias.ptr<float>(),
                        .side = static_cast<int>(args.side),
                        .hidden = static_cast<int>(args.x.row_elements()),
                        .version = args.version,
                        .eps = args.eps};
  launch(stream, "plain_pixel_shuffle", {static_cast<unsigned>(args.out.rows())}, kThreads, 64 * sizeof(float),
         shuffle_kernel, p);
}

}  // namespace tessera::cuda::plain
