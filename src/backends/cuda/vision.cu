#include "ops/vision_ops.h"

#include <algorithm>

#include "backends/cuda/column_sums.cuh"
#include "backends/cuda/fast.cuh"
#include "backends/cuda/operators.h"
#include "backends/cuda/plain/plain.h"
#include "backends/cuda/product.h"
#include "backends/cuda/rows.h"
#include "backends/cuda_choice/sizing.h"

namespace tessera::cuda {
namespace {

constexpr size_t kMostShared = 48 << 10;

// ---- Cutting patches

constexpr int kCutThreads = 320;  // at most: four patches of 14 x 14 at a time
constexpr int kRowPadding = 16;   // bytes, so that lanes' pixels of neighbouring rows meet fewer banks twice

struct PatchParams {
  const uint8_t* tiles;
  plain::Elements out;  ///< 16-bit rows of `padded` columns
  int side, patch, columns, padded;
  float scale[3], shift[3];  ///< a channel's value is scale * u + shift
  int groups;                ///< patches at a time
};

size_t strip_bytes(const PatchParams& p) { return static_cast<size_t>(3 * p.patch) * (p.side + kRowPadding); }

/// A block cuts one row of patches of one tile, whose pixels wait in shared memory, channel after channel. A thread makes the same
/// eight columns of every patch that is its: where their pixels are, two neighbours at a time, is found once.
template <class T>
__global__ __launch_bounds__(kCutThreads) void cut_kernel(const __grid_constant__ PatchParams p) {
  extern __shared__ __align__(16) uint8_t pixels[];
  const int edge = p.side / p.patch, each = p.padded / 8, row_bytes = p.side + kRowPadding;
  const int group = static_cast<int>(threadIdx.x) / each, column = static_cast<int>(threadIdx.x) % each * 8;
  int place[4];
  float scale[4], shift[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int c = column + 2 * i, line = c / p.patch;  // of the strip's 3 * patch
    const bool inside = c < p.columns;
    place[i] = inside ? line * row_bytes + c % p.patch : 0;
    scale[i] = inside ? p.scale[line / p.patch] : 0.0f;
    shift[i] = inside ? p.shift[line / p.patch] : 0.0f;
  }
  wait_for_previous();
  let_next_start();
  const int tile = static_cast<int>(blockIdx.x) / edge, y0 = static_cast<int>(blockIdx.x) % edge * p.patch, vectors = p.side / 16;
  for (int i = threadIdx.x; i < 3 * p.patch * vectors; i += static_cast<int>(blockDim.x)) {
    const int line = i / vectors, at = i % vectors * 16;
    const uint8_t* from = p.tiles + static_cast<int64_t>(tile * 3 + line / p.patch) * p.side * p.side + (y0 + line % p.patch) * p.side + at;
    copy_async(shared_address(pixels) + line * row_bytes + at, from, true);
  }
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  if (group >= p.groups) return;
  T* to = static_cast<T*>(p.out.data) + static_cast<int64_t>(blockIdx.x) * edge * p.out.stride + column;
#pragma unroll 4
  for (int patch = group; patch < edge; patch += p.groups) {
    float v[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned pair = *reinterpret_cast<const uint16_t*>(pixels + place[i] + patch * p.patch);
      v[2 * i] = fmaf(static_cast<float>(pair & 0xff), scale[i], shift[i]);
      v[2 * i + 1] = fmaf(static_cast<float>(pair >> 8), scale[i], shift[i]);
    }
    *reinterpret_cast<uint4*>(to + patch * p.out.stride) = pack8<T>(v);
  }
}

// ---- Ending the product of patches

constexpr int kEndThreads = 256;
constexpr int kTilesEach = 4;  // of a thread: positions are read once for them, and more loads are in flight

struct EmbedParams {
  const void* raw;        ///< sums, a tile's patches behind those of the one ahead
  plain::Elements out;    ///< rows of the same type, a class token before each tile's patches
  const float *bias, *token, *positions;
  float2* sums;  ///< see PatchEmbedArgs::out_sums, or null
  int tiles, rows, hidden;  ///< rows of a tile
};

/// A thread makes eight columns of the same row of several tiles.
template <class T>
__global__ __launch_bounds__(kEndThreads) void embed_kernel(EmbedParams p) {
  let_next_start();
  const int pieces = p.hidden / 8, item = static_cast<int>(blockIdx.x) * kEndThreads + static_cast<int>(threadIdx.x);
  const bool mine = item < p.rows * pieces;
  const int row = mine ? item / pieces : 0, column = mine ? item % pieces * 8 : 0;
  const int tile0 = static_cast<int>(blockIdx.y) * kTilesEach, tiles = min(kTilesEach, p.tiles - tile0);
  float beside[8], position[8];
  load8((row ? p.bias : p.token) + column, beside);
  load8(p.positions + static_cast<int64_t>(row) * p.hidden + column, position);
#pragma unroll
  for (int j = 0; j < 8; ++j) beside[j] += position[j];
  wait_for_previous();
  uint4 raw[kTilesEach] = {};
  if (row) {
    const T* from = static_cast<const T*>(p.raw) + (static_cast<int64_t>(tile0) * (p.rows - 1) + row - 1) * p.hidden + column;
#pragma unroll
    for (int i = 0; i < kTilesEach; ++i)
      if (i < tiles) raw[i] = *reinterpret_cast<const uint4*>(from + static_cast<int64_t>(i) * (p.rows - 1) * p.hidden);
  }
#pragma unroll
  for (int i = 0; i < kTilesEach; ++i) {
    if (i >= tiles) return;
    const int64_t to = static_cast<int64_t>(tile0 + i) * p.rows + row;
    float v[8];
    unpack8<T>(raw[i], v);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] += beside[j];
    const uint4 words = pack8<T>(v);
    if (mine) *reinterpret_cast<uint4*>(static_cast<T*>(p.out.data) + to * p.out.stride + column) = words;
    if (!p.sums) continue;
    const float2 sums = column_sums<T>(words);
    if (mine && threadIdx.x % 8 == 0) p.sums[(to * p.hidden + column) / kSumColumns] = sums;
  }
}

bool aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; }

/// Normalised patches, rows padded with zeros.
void cut_patches(Stream& stream, const PatchEmbedArgs& args, const Tensor& patches) {
  PatchParams p{.tiles = args.tiles.ptr<uint8_t>(),
                .out = plain::elements(patches),
                .side = static_cast<int>(args.tiles.dims[2]),
                .patch = args.patch,
                .columns = 3 * args.patch * args.patch,
                .padded = static_cast<int>(patches.row_elements())};
  for (size_t c = 0; c < 3; ++c) {
    p.scale[c] = static_cast<float>(1.0 / (255.0 * args.std[c]));
    p.shift[c] = static_cast<float>(-static_cast<double>(args.mean[c]) / args.std[c]);
  }
  const int each = p.padded / 8, edge = p.side / p.patch;
  const bool fits = patches.dtype != DType::kF32 && p.padded % 8 == 0 && vectors16(p.out) && p.patch % 2 == 0 && p.side % 16 == 0 &&
                    aligned(args.tiles) && each <= kCutThreads && strip_bytes(p) <= kMostShared;
  if (!fits) return plain::cut_patches(stream, args, patches);
  p.groups = std::min(edge, kCutThreads / each);
  const Grid grid{static_cast<unsigned>(args.tiles.rows() * edge)};
  dispatch_half(patches.dtype, "patch_embed", [&](auto zero) {
    launch_fast(stream, "cut_patches", grid, (p.groups * each + 31) / 32 * 32, strip_bytes(p), cut_kernel<decltype(zero)>, p);
  });
}

/// Whether end_patches serves: rows are of 16 bits, as the products' sums are.
bool ends_apart(CudaStream& stream, const PatchEmbedArgs& args) {
  const DType dtype = args.weight->spec().dtype;
  return dtype != DType::kF32 && args.out.dtype == dtype && stream.device.plan(dtype).linear != LinearKernel::kPlain &&
         args.out.row_elements() % 8 == 0 && vectors16(plain::elements(args.out)) && args.positions.contiguous() && aligned(args.positions) &&
         aligned(args.bias) && aligned(args.class_token);
}

/// All that follows the product, of whole tiles from `first` on: biases, class tokens, positions, sums of rows.
void end_patches(Stream& stream, const PatchEmbedArgs& args, const Tensor& raw, int64_t first) {
  const int64_t rows = args.positions.rows(), hidden = args.out.row_elements(), tiles = raw.rows() / (rows - 1);
  EmbedParams p{.raw = raw.data,
                .out = plain::elements(args.out.slice(first * rows, tiles * rows)),
                .bias = args.bias.ptr<float>(),
                .token = args.class_token.ptr<float>(),
                .positions = args.positions.ptr<float>(),
                .sums = reinterpret_cast<float2*>(args.out_sums.data),
                .tiles = static_cast<int>(tiles),
                .rows = static_cast<int>(rows),
                .hidden = static_cast<int>(hidden)};
  if (p.sums) p.sums += first * rows * hidden / kSumColumns;
  const Grid grid{plain::blocks_for(rows * hidden / 8, kEndThreads), plain::blocks_for(tiles, kTilesEach)};
  dispatch_half(raw.dtype, "patch_embed", [&](auto zero) { launch_fast(stream, "end_patches", grid, kEndThreads, 0, embed_kernel<decltype(zero)>, p); });
}

/// The product alone and one pass for the rest. Whole tiles at a time, as many as raw sums have room for.
void embed_apart(CudaStream& stream, const PatchEmbedArgs& args, const Tensor& patches) {
  const DType dtype = args.weight->spec().dtype;
  const int64_t grid = args.positions.rows() - 1, hidden = args.out.row_elements(), tiles = args.tiles.rows();
  const int64_t tile_bytes = grid * hidden * static_cast<int64_t>(size_of(dtype));
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(kProductScratch) / tile_bytes);
  for (int64_t first = 0; first < tiles; first += most) {
    const int64_t count = std::min(most, tiles - first);
    const Tensor raw(stream.device.product_scratch.get(static_cast<size_t>(count * tile_bytes), "patch_embed", stream.capturing), dtype, {count * grid, hidden});
    const Product p = prepare(stream, {.x = patches.slice(first * grid, count * grid), .weight = args.weight, .out = raw}, 0);
    if (stream.device.plan(dtype).linear == LinearKernel::kCublasLt)
      library_linear(stream, p);
    else
      mma_linear(stream, dtype, gemm_params(p));  // wgmma keeps sums of split tiles where raw ones lie
    end_patches(stream, args, raw, first);
  }
}

}  // namespace

void patch_embed(Stream& stream, const PatchEmbedArgs& args) {
  // Patches go to own scratch with their rows padded to 16 bytes (588 columns are not a multiple of 8).
  const LinearSpec& spec = args.weight->spec();
  const int64_t columns = packed_shape(spec).cols, rows = args.patches.rows();
  Tensor patches = args.patches;
  if (columns != spec.cols)
    patches = Tensor(operator_scratch(stream, static_cast<size_t>(rows * columns) * size_of(spec.dtype), "patch_embed"), spec.dtype, {rows, columns});
  cut_patches(stream, args, patches);
  if (ends_apart(cuda_stream(stream), args)) return embed_apart(cuda_stream(stream), args, patches);
  TESSERA_CHECK(!args.out_sums, "[patch_embed] sums are of rows of 16 bits");
  plain::class_rows(stream, args);
  run_product(stream, {.x = patches, .weight = args.weight, .bias = args.bias, .residual = args.positions, .out = args.out}, args.positions.rows() - 1);
}

void pixel_shuffle(Stream& stream, const PixelShuffleArgs& args) {
  FinishParams p{.x = plain::elements(args.x), .n = 4 * args.x.row_elements(), .rows = args.out.rows()};
  p.fold_side = static_cast<int>(args.side);
  p.fold_transposed = args.version == 1;
  if (args.norm_weight) set_norm(p, {.kind = NormKind::kLayer, .weight = args.norm_weight, .bias = args.norm_bias, .eps = args.eps, .out = args.out});
  if (cuda_stream(stream).device.limits.warp_size != 32 || !norm_rows_serves(p)) return plain::pixel_shuffle(stream, args);
  norm_rows(stream, p);
}

}  // namespace tessera::cuda
