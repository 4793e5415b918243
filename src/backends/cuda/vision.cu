#include "ops/vision_ops.h"

#include <algorithm>

#include "backends/cuda/fast.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/operators.h"
#include "backends/cuda/plain/plain.h"
#include "backends/cuda/rows.h"

namespace tessera::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kMostShared = 48 << 10;

struct PatchParams {
  const uint8_t* tiles;
  plain::Elements out;  ///< 16-bit rows of `padded` columns
  int side, patch, columns, padded;
  float mean[3], std[3];
  const float *token, *positions;  ///< the class token, and its position in front of the others
  plain::Elements rows;            ///< of the stream, a tile's class token before its patches
  int hidden;
};

size_t patch_bytes(const PatchParams& p) {
  return static_cast<size_t>(3 * p.patch * p.side) + 3 * 256 * 2 + static_cast<size_t>(p.padded) * 4;
}

/// A block cuts one row of patches of one tile, whose pixels it holds in shared memory beside a table of what each of the 256
/// values of a channel becomes, and, for each column of a patch, where in the pixels it is and in which channel. A tile's first
/// block writes its class token's row, too.
template <class T>
__global__ __launch_bounds__(kThreads) void patch_kernel(PatchParams p) {
  extern __shared__ __align__(16) uint8_t shared[];
  const int strip = 3 * p.patch * p.side, area = p.patch * p.patch, edge = p.side / p.patch;
  uint8_t* pixels = shared;
  T* table = reinterpret_cast<T*>(shared + strip);
  int* place = reinterpret_cast<int*>(shared + strip + 3 * 256 * 2);
  const int tile = static_cast<int>(blockIdx.x) / edge, y0 = static_cast<int>(blockIdx.x) % edge * p.patch;
  static_assert(kThreads == 256);
#pragma unroll
  for (int channel = 0; channel < 3; ++channel)
    table[channel * 256 + threadIdx.x] = static_cast<T>((static_cast<float>(threadIdx.x) / 255.0f - p.mean[channel]) / p.std[channel]);
  for (int c = threadIdx.x; c < p.padded; c += kThreads) {
    const int channel = c / area, y = c / p.patch % p.patch, x = c % p.patch;
    place[c] = c < p.columns ? ((channel * p.patch + y) * p.side + x) << 2 | channel : 3;
  }
  wait_for_previous();
  let_next_start();
  const int vectors = p.patch * p.side / 16;  // of a channel's strip, whose rows follow each other
  for (int i = threadIdx.x; i < 3 * vectors; i += kThreads) {
    const uint8_t* from = p.tiles + static_cast<int64_t>(tile * 3 + i / vectors) * p.side * p.side + y0 * p.side;
    reinterpret_cast<uint4*>(pixels)[i] = reinterpret_cast<const uint4*>(from)[i % vectors];
  }
  if (y0 == 0)
    for (int c = threadIdx.x; c < p.hidden; c += kThreads)
      p.rows.set(static_cast<int64_t>(tile) * (1 + edge * edge), c, p.token[c] + p.positions[c]);
  __syncthreads();
  const int each = p.padded / 8;
  for (int i = threadIdx.x; i < edge * each; i += kThreads) {
    const int patch = i / each, column = i % each * 8;
    uint4 words;
    T* to = reinterpret_cast<T*>(&words);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int at = place[column + j], channel = at & 3;
      to[j] = channel == 3 ? static_cast<T>(0.0f) : table[channel * 256 + pixels[(at >> 2) + patch * p.patch]];
    }
    const int64_t row = static_cast<int64_t>(blockIdx.x) * edge + patch;
    *reinterpret_cast<uint4*>(static_cast<T*>(p.out.data) + row * p.out.stride + column) = words;
  }
}

}  // namespace

void patches_and_class_rows(Stream& stream, const PatchEmbedArgs& args, const Tensor& patches) {
  PatchParams p{.tiles = args.tiles.ptr<uint8_t>(),
                .out = plain::elements(patches),
                .side = static_cast<int>(args.tiles.dims[2]),
                .patch = args.patch,
                .columns = 3 * args.patch * args.patch,
                .padded = static_cast<int>(patches.row_elements()),
                .token = args.class_token.ptr<float>(),
                .positions = args.positions.ptr<float>(),
                .rows = plain::elements(args.out),
                .hidden = static_cast<int>(args.out.row_elements())};
  for (int c = 0; c < 3; ++c) {
    p.mean[c] = args.mean[static_cast<size_t>(c)];
    p.std[c] = args.std[static_cast<size_t>(c)];
  }
  const bool fits = patches.dtype != DType::kF32 && p.padded % 8 == 0 && patches.row_stride % 8 == 0 && p.side % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(patches.data) % 16 == 0 && reinterpret_cast<uintptr_t>(p.tiles) % 16 == 0 &&
                    args.tiles.contiguous() && patch_bytes(p) <= kMostShared;
  if (!fits) {
    plain::cut_patches(stream, args, patches);
    return plain::class_rows(stream, args);
  }
  const Grid grid{static_cast<unsigned>(args.tiles.rows() * (p.side / p.patch))};
  dispatch_half(patches.dtype, "patch_embed", [&](auto zero) {
    launch_fast(stream, "cut_patches", grid, kThreads, patch_bytes(p), patch_kernel<decltype(zero)>, p);
  });
}

void pixel_shuffle(Stream& stream, const PixelShuffleArgs& args) {
  const int64_t hidden = args.x.row_elements();
  if (!args.norm_weight || hidden % 4 != 0 || 4 * hidden > kMaxNormColumns || !vector_rows(args.x) || !vector_rows(args.out) ||
      cuda_stream(stream).device.limits.warp_size != 32)
    return plain::pixel_shuffle(stream, args);
  NormArgs norm{.kind = NormKind::kLayer, .weight = args.norm_weight, .bias = args.norm_bias, .eps = args.eps, .out = args.out};
  FinishParams p{.x = plain::elements(args.x), .n = 4 * hidden};
  set_norm(p, norm);
  p.fold_side = static_cast<int>(args.side);
  p.fold_transposed = args.version == 1;
  finish_rows(stream, args.out.rows(), p);
}

}  // namespace tessera::cuda
