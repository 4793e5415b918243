#include <algorithm>
#include <bit>

#include "backends/cuda/gemm/skinny_end.cuh"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

using namespace skinny;

// Few rows: the product is one stream of weights. A persistent block a multiprocessor takes an equal slice of the
// result's columns, whatever their number, so that all finish together; its 8 warps share K, each with a ring of its own
// in shared memory that asynchronous copies keep full. The ring is filled before the kernel ahead has ended (weights are
// constant), and the kernel behind does the same meanwhile: the stream does not pause between two products.
// The weight is the 16-row operand of mma.sync, the tokens are its 8 columns. The sum over k may run in any order, so a
// lane takes 8 neighbouring k of its row (16 bytes, one load) as its share of two steps, and the tokens' lanes the same.
// The warps' sums of several tiles of rows meet at one barrier, and each warp ends one of these tiles.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kStageBytes = 2048;  ///< of one warp: 16 rows of 64 k, or 8 of 128
constexpr int kHeld = 4;           ///< vectors of a row that a thread holds at a time before the product

constexpr int ring_bytes(int stages) { return kWarps * stages * kStageBytes; }

/// Rows in shared memory lie so that 8 lanes, 4 chunks of 16 bytes in each of 2 rows, meet no bank twice.
constexpr int64_t padded_row(int64_t k) { return (k + 63) / 64 * 64 + 32; }

/// Rows of x to shared memory as they are.
template <class T>
__device__ void copy_rows(const Params& p, T* to) {
  const GemmParams& g = p.s.g;
  const int threads = p.warps_a_row * 32, at = threadIdx.x % threads, vectors = static_cast<int>(g.k / 8);
  for (int row = threadIdx.x / threads; row < g.m; row += kThreads / threads) {
    const auto* x = reinterpret_cast<const uint4*>(static_cast<const T*>(g.x) + row * g.x_stride);
    auto* out = reinterpret_cast<uint4*>(to + row * p.x_row);
    for (int first = at; first < vectors; first += kHeld * threads) {
      uint4 held[kHeld];
#pragma unroll
      for (int i = 0; i < kHeld; ++i)
        if (first + i * threads < vectors) held[i] = x[first + i * threads];
#pragma unroll
      for (int i = 0; i < kHeld; ++i)
        if (first + i * threads < vectors) out[first + i * threads] = held[i];
    }
  }
}

/// RMS-normed rows of x to shared memory. Every thread takes part.
template <class T>
__device__ void norm_rows(const Params& p, const float4 (&weight)[kHeld], T* to, float* scratch) {
  const GemmParams& g = p.s.g;
  const int threads = p.warps_a_row * 32, at = threadIdx.x % threads, vectors = static_cast<int>(g.k / 4);
  const int rows_a_turn = kThreads / threads, warp = threadIdx.x / 32;
  for (int first = 0; first < g.m; first += rows_a_turn, scratch += kWarps) {
    const int row = first + threadIdx.x / threads;
    const auto* x = reinterpret_cast<const float4*>(static_cast<const float*>(g.x) + row * g.x_stride);
    const bool inside = row < g.m;
    float4 held[kHeld];
    float squares = 0;
    auto add = [&](const float4& v) { squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w); };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int j = at + i * threads;
      held[i] = inside && j < vectors ? x[j] : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) add(held[i]);
    if (inside)
      for (int j = at + kHeld * threads; j < vectors; j += threads) add(x[j]);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, mask);
    if (p.warps_a_row > 1) {
      if (threadIdx.x % 32 == 0) scratch[warp] = squares;
      __syncthreads();
      squares = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w)
        squares += w / p.warps_a_row == warp / p.warps_a_row ? scratch[w] : 0.0f;
    }
    if (!inside) continue;
    const float inverse = rsqrtf(squares * p.inverse_k + p.s.norm_eps);
    auto store = [&](int j, const float4& v, const float4& w) {
      *reinterpret_cast<uint2*>(to + row * p.x_row + 4 * j) =
          make_uint2(pack2<T>(v.x * inverse * w.x, v.y * inverse * w.y), pack2<T>(v.z * inverse * w.z, v.w * inverse * w.w));
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (at + i * threads < vectors) store(at + i * threads, held[i], weight[i]);
    for (int j = at + kHeld * threads; j < vectors; j += threads)
      store(j, x[j], __ldg(reinterpret_cast<const float4*>(p.s.norm_weight) + j));
  }
}


/// kRows 16: stages of 64 k; 8: a block's columns fit into half a tile, which leaves its other rows empty: stages of 128 k.
template <class T, int kTiles, int kStages, Ends kEnds, int kRows>
__global__ __launch_bounds__(kThreads, 2) void skinny_kernel(const __grid_constant__ Params p) {
  constexpr int kStep = kStageBytes / (2 * kRows), kChunks = kStep / 8, kRowBytes = kStep * 2;
  constexpr int kSums = kTiles == 1 ? 2 : 1;  ///< in turns: one sum would wait for itself
  extern __shared__ __align__(128) unsigned char shared[];
  let_next_start();
  const GemmParams& gp = p.s.g;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int k_end = static_cast<int>(gp.k);
  const int columns = static_cast<int>(gp.end.columns) / (kEnds == Ends::kRotated ? 2 : 1);
  // Unsigned 32-bit numbers: columns x blocks stay below 2^32 for any vocabulary.
  const Slice<kEnds, kRows> slice(static_cast<int>(static_cast<unsigned>(columns) * blockIdx.x / gridDim.x),
                                  static_cast<int>(static_cast<unsigned>(columns) * (blockIdx.x + 1) / gridDim.x),
                                  gp.gated, p.s.rotary.half);
  const int tiles = slice.tiles;
  const int steps = (k_end + kStep - 1) / kStep;
  const int own = steps > warp ? (steps - warp + kWarps - 1) / kWarps : 0;  // warp, warp + 8, ...

  const uint32_t ring = shared_address(shared) + warp * kStages * kStageBytes;
  const int sum_floats = kWarps * kTiles * p.quads * 32;  // of a tile
  auto* partial = reinterpret_cast<float*>(shared + ring_bytes(kStages));
  T* rows = reinterpret_cast<T*>(partial + sum_floats * p.batch * (p.two_buffers ? 2 : 1));

  // The copying side: a lane brings one chunk of every second or fourth row. Chunks of odd rows change halves.
  const int chunk = lane % kChunks, slot0 = lane / kChunks;
  constexpr int kSlotsApart = 32 / kChunks;
  static_assert(kSlotsApart % 2 == 0 && kRows / kSlotsApart == 4);
  const uint32_t to = slot0 * kRowBytes + ((chunk ^ (slot0 & 1) << 2) << 4);
  const T* const weight = static_cast<const T*>(gp.weight) + chunk * 8;
  const T* from[4];
  int copy_tile = 0, copy_step = 0, copy_stage = 0;
  auto point = [&](int tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = slice.row(tile, slot0 + kSlotsApart * i);
      from[i] = row < 0 ? nullptr : weight + static_cast<int64_t>(row) * gp.weight_stride;
    }
  };
  auto copy = [&] {
    if (copy_tile < tiles && own > 0) {
      const int k = (warp + copy_step * kWarps) * kStep;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool valid = from[i] != nullptr && k + chunk * 8 < k_end;
        copy_async(ring + copy_stage * kStageBytes + to + i * kSlotsApart * kRowBytes, valid ? from[i] + k : weight,
                   valid);
      }
      if (++copy_stage == kStages) copy_stage = 0;
      if (++copy_step == own) {
        copy_step = 0;
        if (++copy_tile < tiles) point(copy_tile);
      }
    }
    copy_commit();
  };
  point(0);
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy();
  // Of each batch a warp ends one tile's 8 tokens, if there are so many. The last warps, with least of K, come first.
  const int end_tile = (kWarps - 1 - warp) / kTiles, end_tokens = (kWarps - 1 - warp) % kTiles;
  End end;
  if (end_tile < min(p.batch, tiles)) prepare_end(p, slice, end_tile, g, end);
  float4 norm_weight[kHeld];
  if (p.s.norm_weight) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int j = threadIdx.x % (p.warps_a_row * 32) + i * p.warps_a_row * 32;
      norm_weight[i] = j < k_end / 4 ? __ldg(reinterpret_cast<const float4*>(p.s.norm_weight) + j) : make_float4(0, 0, 0, 0);
    }
  }
  wait_for_previous();

  if (end_tile < min(p.batch, tiles)) load_end(p, slice, end_tokens, q, end);
  const T* x = static_cast<const T*>(gp.x);
  int64_t x_stride = gp.x_stride;
  if (p.x_row > 0) {
    if (p.s.norm_weight)
      norm_rows<T>(p, norm_weight, rows, partial);
    else
      copy_rows<T>(p, rows);
    x = rows;
    x_stride = p.x_row;
    __syncthreads();
  }

  const uint32_t low = g * kRowBytes + ((q ^ (g & 1) << 2) << 4);  // rows g and g + 8, chunks q, q + 4, ...
  int stage = 0;
  for (int first = 0, turn = 0; first < tiles; first += p.batch, ++turn) {
    const int count = min(p.batch, tiles - first);
    if (turn > 0 && end_tile < count) {
      prepare_end(p, slice, first + end_tile, g, end);
      load_end(p, slice, end_tokens, q, end);
    }
    float* const meeting = partial + (turn % 2 == 1 && p.two_buffers ? sum_floats * p.batch : 0);
    if (turn > 0 && !p.two_buffers) __syncthreads();
    for (int tile = 0; tile < count; ++tile) {
      float sum[kSums][kTiles][4] = {};
      for (int s = 0; s < own; ++s) {
        const int k = (warp + s * kWarps) * kStep + q * 8;
        uint4 b[kTiles][kChunks / 4];
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
          for (int u = 0; u < kChunks / 4; ++u)
            b[t][u] = t * 8 + g < gp.m && k + u * 32 < k_end
                          ? *reinterpret_cast<const uint4*>(x + (t * 8 + g) * x_stride + k + u * 32)
                          : make_uint4(0, 0, 0, 0);
        copy_wait<kStages - 2>();
        __syncwarp();  // the other lanes' copies have landed, too, and all have read the stage before this one
        copy();
        const uint32_t at = ring + stage * kStageBytes + low;
        if (++stage == kStages) stage = 0;
#pragma unroll
        for (int u = 0; u < kChunks / 4; ++u) {
          const uint32_t piece = (at ^ (u & 1) << 6) + u / 2 * 128;
          const uint4 a0 = load_shared(piece),
                      a1 = kRows == 16 ? load_shared(piece + 8 * kRowBytes) : make_uint4(0, 0, 0, 0);
          const uint32_t first_half[4] = {a0.x, a1.x, a0.y, a1.y}, second_half[4] = {a0.z, a1.z, a0.w, a1.w};
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            mma<T>(sum[0][t], first_half, b[t][u].x, b[t][u].y);
            mma<T>(sum[kSums - 1][t], second_half, b[t][u].z, b[t][u].w);
          }
        }
      }
      if (q < p.quads) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            meeting[(tile * kWarps + warp) * kTiles * p.quads * 32 + (t * 4 + i) * p.quads * 8 + q * 8 + g] =
                kSums == 2 ? sum[0][t][i] + sum[kSums - 1][t][i] : sum[0][t][i];
      }
    }
    __syncthreads();
    if (end_tile >= count) continue;
    float total[4] = {};
    if (q < p.quads) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          total[i] +=
              meeting[(end_tile * kWarps + w) * kTiles * p.quads * 32 + (end_tokens * 4 + i) * p.quads * 8 + q * 8 + g];
    }
    finish<T, kEnds>(p, slice, first + end_tile, end_tokens, g, q, end, total);
  }
}

/// How a block's shared memory is shared out: the deepest ring that leaves room for m rows of x, or without room for them.
struct Layout {
  int stages = 2, batch = 1;
  bool x_inside = false, two_buffers = false;
  int64_t bytes = 0;
};

int token_tiles(int64_t m) { return m <= 8 ? 1 : 4; }
int token_quads(int64_t m) { return m <= 8 ? static_cast<int>((m + 1) / 2) : 4; }

/// `tiles`: of rows, that a block takes.
Layout layout(int64_t m, int64_t k, int64_t tiles, int most_stages, int64_t shared) {
  const int64_t x = m * padded_row(k) * 2, sums = int64_t{kWarps} * token_tiles(m) * token_quads(m) * 32 * 4;
  const auto with = [&](int stages, bool x_inside) {
    const int64_t fixed = ring_bytes(stages) + (x_inside ? x : 0), room = (shared - fixed) / sums;
    Layout l{.stages = stages, .x_inside = x_inside};
    l.batch = static_cast<int>(std::min({tiles, room, int64_t{kWarps / token_tiles(m)}}));
    l.two_buffers = l.batch < tiles && room >= 2;
    if (l.two_buffers) l.batch = static_cast<int>(std::min<int64_t>(l.batch, room / 2));
    l.bytes = fixed + l.batch * sums * (l.two_buffers ? 2 : 1);
    return l;
  };
  for (int stages : {6, 4, 2}) {
    if (stages > most_stages) continue;
    if (const Layout l = with(stages, true); l.batch >= 1) return l;
  }
  // A shallow ring leaves the first level of cache to x.
  const Layout l = with(4, false);
  return l.batch >= 1 ? l : with(2, false);
}

Ends ends_of(const SkinnyParams& s, DType dtype) {
  const EpilogueParams& e = s.g.end;
  if (s.rotary.half) return Ends::kRotated;
  if (s.g.gated) return e.out.dtype == dtype ? Ends::kGatedHalf : Ends::kGeneral;
  const bool floats = e.out.dtype == DType::kF32 && (!e.residual.data || e.residual.dtype == DType::kF32);
  return floats && !s.g.gelu && !e.scale ? Ends::kFloat : Ends::kGeneral;
}

struct Launch {
  Params p;
  Layout layout;
  unsigned blocks;
  bool half_tile;  ///< every block's columns fit into 8 rows
};

template <class T, int kTiles, int kStages, Ends kEnds, int kRows>
void run(Stream& stream, const Launch& l) {
  launch_fast(stream, "skinny_linear", Grid{l.blocks}, kThreads, static_cast<size_t>(l.layout.bytes),
              skinny_kernel<T, kTiles, kStages, kEnds, kRows>, l.p);
}

template <class T, int kTiles, Ends kEnds, int kRows = 16>
void with_stages(Stream& stream, const Launch& l) {
  if (l.layout.stages == 6) return run<T, kTiles, 6, kEnds, kRows>(stream, l);
  if (l.layout.stages == 4) return run<T, kTiles, 4, kEnds, kRows>(stream, l);
  run<T, kTiles, 2, kEnds, kRows>(stream, l);
}

template <class T>
void with_ends(Stream& stream, const Launch& l, Ends ends) {
  switch (ends) {
    case Ends::kRotated:
      return with_stages<T, 1, Ends::kRotated>(stream, l);
    case Ends::kGatedHalf:
      return with_stages<T, 1, Ends::kGatedHalf>(stream, l);
    case Ends::kFloat:
      return l.half_tile ? with_stages<T, 1, Ends::kFloat, 8>(stream, l) : with_stages<T, 1, Ends::kFloat>(stream, l);
    case Ends::kGeneral:
      return with_stages<T, 1, Ends::kGeneral>(stream, l);
  }
}

}  // namespace

bool skinny_norms(int64_t m, int64_t k, int64_t shared) {
  // Every block norms all of the rows: beyond this a kernel of its own costs less.
  constexpr int64_t kMostElements = 8192;
  return m * k <= kMostElements && layout(m, k, 1, 2, shared).x_inside;
}

void skinny_linear(Stream& stream, DType dtype, const SkinnyParams& s, int64_t shared) {
  const Ends ends = ends_of(s, dtype);
  const int64_t columns = s.g.end.columns / (s.rotary.half ? 2 : 1);
  const int64_t blocks = std::clamp<int64_t>(cuda_stream(stream).device.limits.multiprocessors, 1, (columns + 3) / 4);
  const int64_t most = (columns + blocks - 1) / blocks;  // of a block
  const bool half_tile = ends == Ends::kFloat && most <= 8 && s.g.m <= 8;
  const int64_t width = s.g.gated || s.rotary.half || half_tile ? 8 : 16;
  // Shares are equal only if no multiprocessor gets two blocks of a product: what is launched while others still run goes
  // wherever there is room. So kernels take more than half of a multiprocessor and less than half in turns: q | k | v, o,
  // gate and up, down. An 8B layer at one row: 192 us without, 170 with it (H100).
  const bool alone = ends != Ends::kFloat;
  Layout shares = layout(s.g.m, s.g.k, (most + width - 1) / width, alone ? 6 : 4, shared);
  if (alone && shared == shared_bytes::kSkinny) shares.bytes = shared;
  TESSERA_CHECK(shares.x_inside || !s.norm_weight, "skinny_linear norms no more rows than fit");
  const Launch l{
      .p = {.s = s,
            .x_row = shares.x_inside ? padded_row(s.g.k) : 0,
            .warps_a_row =
                kWarps / static_cast<int>(std::bit_ceil(static_cast<uint64_t>(std::min<int64_t>(s.g.m, kWarps)))),
            .inverse_k = 1.0f / static_cast<float>(s.g.k),
            .batch = shares.batch,
            .two_buffers = shares.two_buffers,
            .quads = token_quads(s.g.m)},
      .layout = shares,
      .blocks = static_cast<unsigned>(blocks),
      .half_tile = half_tile};
  dispatch_half(dtype, "linear", [&](auto zero) {
    using T = decltype(zero);
    if (s.g.m <= 8) return with_ends<T>(stream, l, ends);
    // More rows are for devices without wgmma: their rotation is a kernel of its own.
    TESSERA_CHECK(!s.rotary.half, "skinny_linear rotates at most 8 rows");
    with_stages<T, 4, Ends::kGeneral>(stream, l);
  });
}

}  // namespace tessera::cuda
