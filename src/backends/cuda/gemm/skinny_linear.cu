#include <algorithm>
#include <bit>

#include "backends/cuda/fast.cuh"
#include "backends/cuda/gemm/gemm.h"
#include "backends/cuda_choice/kernel_choice.h"

namespace tessera::cuda {
namespace {

// Few rows: the product is one stream of weights. A persistent block a multiprocessor takes an equal slice of the
// result's columns, whatever their number, so that all finish together; its 8 warps share K, each with a ring of its own
// in shared memory that asynchronous copies keep full. The ring is filled before the kernel ahead has ended (weights are
// constant), and the kernel behind does the same meanwhile: the stream does not pause between two products.
// The weight is the 16-row operand of mma.sync, the tokens are its 8 columns. The sum over k may run in any order, so a
// lane takes 8 neighbouring k of its row (16 bytes, one load) as its share of two steps, and the tokens' lanes the same.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = 16;
constexpr int kStep = 64;                      ///< k of a stage: 128 bytes, a line of each row
constexpr int kStageBytes = kRows * kStep * 2; ///< of one warp
constexpr int kHeld = 4;                       ///< vectors of a row that a thread holds at a time before the product

/// The warps' sums meet in two buffers in turns, or in one that takes a second barrier.
template <int kTiles>
constexpr int kBuffers = kTiles == 1 ? 2 : 1;
template <int kTiles>
constexpr int kPartialBytes = kBuffers<kTiles> * kWarps * kTiles * 128 * static_cast<int>(sizeof(float));
constexpr int ring_bytes(int stages) { return kWarps * stages * kStageBytes; }

/// Rows in shared memory lie so that 8 lanes, 4 chunks of 16 bytes in each of 2 rows, meet no bank twice.
constexpr int64_t padded_row(int64_t k) { return (k + 63) / 64 * 64 + 32; }

struct Params {
  SkinnyParams s;
  int64_t x_row;     ///< elements between x's rows in shared memory; 0: x stays where it is
  int warps_a_row;   ///< that bring a row together
  float inverse_k;
};

/// How a tile ends. A kernel of its own for each usual end: what a warp runs once it also fetches once, so that a general
/// end costs more than the sums.
enum class Ends {
  kGeneral,
  kRotated,    ///< q | k | v: rotation and cache
  kGatedHalf,  ///< silu(gate) * up in the weight's type
  kFloat,      ///< f32, at most with bias and an f32 residual
};

/// Which rows of the weight a block's tiles hold. A tile has up to 16 columns of the result, or 8 that take two rows each:
/// slots 0-7 hold gates (or first halves of a head), slots 8-15 their ups (or second halves).
template <Ends kEnds>
struct Slice {
  int begin, end;  ///< columns of the result (pairs of them when rotated)
  bool gated;
  int half;        ///< of a rotated head, else 0
  int tiles, width;  ///< columns of a tile: all alike, since a stage of few rows keeps few bytes in flight

  __device__ bool paired() const {
    return kEnds == Ends::kGeneral ? gated : kEnds != Ends::kFloat;
  }
  __device__ Slice(int begin, int end, bool gated, int half) : begin(begin), end(end), gated(gated), half(half) {
    const int most = paired() ? 8 : kRows, columns = end - begin;
    tiles = (columns + most - 1) / most;
    width = (columns + tiles - 1) / tiles;
  }
  __device__ int within(int slot) const { return paired() ? slot % 8 : slot; }
  __device__ int column(int tile, int slot) const { return begin + tile * width + within(slot); }
  /// The packed row, or -1 past the end.
  __device__ int row(int tile, int slot) const {
    const int c = column(tile, slot), second = slot / 8;
    if (c >= end || within(slot) >= width) return -1;
    if (kEnds == Ends::kRotated) return c / half * 2 * half + c % half + second * half;
    return paired() ? c / 8 * 16 + c % 8 + second * 8 : c;
  }
};

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

/// What the end of a tile needs beside the sums. Element h, odd: slot g + 8 h, token 2 q + odd.
struct End {
  int row[2];         ///< packed rows, -1 past the end
  float bias[2];
  int head, d;        ///< of a rotated pair
  int slot[2];        ///< of its tokens
  float other[2][2];  ///< residual; of a rotated pair [0] are cosines, [1] sines
};

/// The part that no kernel writes: may be loaded before the kernel ahead has ended.
template <Ends kEnds>
__device__ __forceinline__ void prepare_end(const Params& p, const Slice<kEnds>& slice, int tile, int g, End& end) {
  const EpilogueParams& e = p.s.g.end;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    end.row[h] = slice.row(tile, g + 8 * h);
    // A gated weight's biases are [gate; up], others' lie in the order of the rows.
    const int64_t at = kEnds != Ends::kRotated && slice.paired() ? slice.column(tile, g) + h * e.columns : end.row[h];
    end.bias[h] = e.bias && end.row[h] >= 0 ? __ldg(e.bias + at) : 0.0f;
  }
  if (kEnds != Ends::kRotated) return;
  end.head = slice.column(tile, g) / slice.half;
  end.d = slice.column(tile, g) % slice.half;
}

template <Ends kEnds>
__device__ __forceinline__ void load_end(const Params& p, const Slice<kEnds>& slice, int t, int q, End& end) {
  const EpilogueParams& e = p.s.g.end;
  const RotaryParams& r = p.s.rotary;
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int token = t * 8 + 2 * q + odd;
    end.slot[odd] = kEnds == Ends::kRotated && token < p.s.g.m ? r.slots[token] : -1;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int token = t * 8 + 2 * q + odd;
      end.other[h][odd] = 0;
      if (end.row[h] < 0 || token >= p.s.g.m) continue;
      if constexpr (kEnds == Ends::kRotated) {
        end.other[h][odd] = r.cos_sin[token * r.cos_sin_stride + end.d + h * slice.half];
      } else if (e.residual.data) {
        if constexpr (kEnds == Ends::kFloat)
          end.other[h][odd] = static_cast<const float*>(e.residual.data)[token * e.residual.stride + end.row[h]];
        else
          end.other[h][odd] = e.residual.get(token, end.row[h]);
      }
    }
}

/// A pair of one head: rotated to its place among the queries or in the cache; values go there as they are.
template <class T>
__device__ __forceinline__ void finish_rotated(const Params& p, const Slice<Ends::kRotated>& slice, const End& end, int odd, int token,
                                               float first, float second) {
  const RotaryParams& r = p.s.rotary;
  const float cosine = end.other[0][odd], sine = end.other[1][odd];
  const float a = first * cosine - second * sine, b = second * cosine + first * sine;
  if (end.head < r.heads) {
    T* to = static_cast<T*>(p.s.g.end.out.data) + token * p.s.g.end.out.stride + end.row[0];
    to[0] = static_cast<T>(a);
    to[slice.half] = static_cast<T>(b);
    return;
  }
  const int slot = end.slot[odd];
  if (slot < 0) return;
  const bool value = end.head >= r.heads + r.kv_heads;
  const int kv_head = end.head - r.heads - (value ? r.kv_heads : 0);
  // KvElements::index without its divisions.
  const int within = ((kv_head << r.block_shift) + (slot & ((1 << r.block_shift) - 1))) * 2 * slice.half + end.d;
  T* to = static_cast<T*>(r.kv.base) + (slot >> r.block_shift) * r.kv.block_elements +
          (value ? r.kv.block_elements >> 1 : 0) + within;
  to[0] = static_cast<T>(value ? first : a);
  to[slice.half] = static_cast<T>(value ? second : b);
}

template <class T, Ends kEnds>
__device__ __forceinline__ void finish(const Params& p, const Slice<kEnds>& slice, int tile, int t, int g, int q, const End& end,
                                       const float (&total)[4]) {
  const EpilogueParams& e = p.s.g.end;
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int token = t * 8 + 2 * q + odd;
    if (token >= p.s.g.m) continue;
    const float first = total[odd] + end.bias[0], second = total[2 + odd] + end.bias[1];
    if constexpr (kEnds == Ends::kRotated) {
      if (end.row[0] >= 0) finish_rotated<T>(p, slice, end, odd, token, first, second);
    } else if constexpr (kEnds == Ends::kGatedHalf) {
      if (end.row[0] >= 0)
        static_cast<T*>(e.out.data)[token * e.out.stride + slice.column(tile, g)] = static_cast<T>(fast_silu(first) * second);
    } else if constexpr (kEnds == Ends::kFloat) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (end.row[h] >= 0)
          static_cast<float*>(e.out.data)[token * e.out.stride + end.row[h]] = (h ? second : first) + end.other[h][odd];
    } else if (slice.gated) {
      if (end.row[0] >= 0) e.out.set(token, slice.column(tile, g), fast_silu(first) * second);
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (end.row[h] < 0) continue;
        float v = h ? second : first;
        if (p.s.g.gelu) v = gelu(v);
        if (e.scale) v *= __ldg(e.scale + end.row[h]);
        e.out.set(token, end.row[h], v + end.other[h][odd]);
      }
    }
  }
}

template <class T, int kTiles, int kStages, Ends kEnds>
__global__ __launch_bounds__(kThreads, 2) void skinny_kernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) unsigned char shared[];
  let_next_start();
  const GemmParams& gp = p.s.g;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int k_end = static_cast<int>(gp.k);
  const int columns = static_cast<int>(gp.end.columns) / (kEnds == Ends::kRotated ? 2 : 1);
  // Unsigned 32-bit numbers: columns x blocks stay below 2^32 for any vocabulary.
  const Slice<kEnds> slice(static_cast<int>(static_cast<unsigned>(columns) * blockIdx.x / gridDim.x),
                           static_cast<int>(static_cast<unsigned>(columns) * (blockIdx.x + 1) / gridDim.x), gp.gated,
                           p.s.rotary.half);
  const int tiles = slice.tiles;
  const int steps = (k_end + kStep - 1) / kStep;
  const int own = steps > warp ? (steps - warp + kWarps - 1) / kWarps : 0;  // warp, warp + 8, ...

  const uint32_t ring = shared_address(shared) + warp * kStages * kStageBytes;
  auto* partial = reinterpret_cast<float*>(shared + ring_bytes(kStages));
  T* rows = reinterpret_cast<T*>(shared + ring_bytes(kStages) + kPartialBytes<kTiles>);

  // The copying side: a lane brings chunk lane % 8 of rows lane / 8 + 0, 4, 8, 12. Chunks of odd rows change halves.
  const int chunk = lane % 8, slot0 = lane / 8;
  const uint32_t to = slot0 * 128 + ((chunk ^ (slot0 & 1) << 2) << 4);
  const T* const weight = static_cast<const T*>(gp.weight) + chunk * 8;
  const T* from[4];
  int copy_tile = 0, copy_step = 0, copy_stage = 0;
  auto point = [&](int tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = slice.row(tile, slot0 + 4 * i);
      from[i] = row < 0 ? nullptr : weight + static_cast<int64_t>(row) * gp.weight_stride;
    }
  };
  auto copy = [&] {
    if (copy_tile < tiles && own > 0) {
      const int k = (warp + copy_step * kWarps) * kStep;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool valid = from[i] != nullptr && k + chunk * 8 < k_end;
        copy_async(ring + copy_stage * kStageBytes + to + i * 512, valid ? from[i] + k : weight, valid);
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
  // The token tile of each weight tile that this warp finishes, if any: warps take turns, the last, with least of K, first.
  auto ends_at = [&](int tile) { return (kWarps - 1 - warp + tile * kTiles * (kWarps - 1)) % kWarps; };
  End end;
  if (ends_at(0) < kTiles) prepare_end(p, slice, 0, g, end);
  float4 norm_weight[kHeld];
  if (p.s.norm_weight) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int j = threadIdx.x % (p.warps_a_row * 32) + i * p.warps_a_row * 32;
      norm_weight[i] = j < k_end / 4 ? __ldg(reinterpret_cast<const float4*>(p.s.norm_weight) + j) : make_float4(0, 0, 0, 0);
    }
  }
  wait_for_previous();

  if (ends_at(0) < kTiles) load_end(p, slice, ends_at(0), q, end);
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

  const uint32_t low = g * 128 + ((q ^ (g & 1) << 2) << 4);  // rows g and g + 8 (1024 bytes on), chunks q and q + 4
  int stage = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int ends = ends_at(tile);
    if (tile > 0 && ends < kTiles) {
      prepare_end(p, slice, tile, g, end);
      load_end(p, slice, ends, q, end);
    }
    float sum[kTiles][4] = {};
    for (int s = 0; s < own; ++s) {
      const int k = (warp + s * kWarps) * kStep + q * 8;
      uint4 b[kTiles][2];
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int u = 0; u < 2; ++u)
          b[t][u] = t * 8 + g < gp.m && k + u * 32 < k_end
                        ? *reinterpret_cast<const uint4*>(x + (t * 8 + g) * x_stride + k + u * 32)
                        : make_uint4(0, 0, 0, 0);
      copy_wait<kStages - 2>();
      __syncwarp();  // the other lanes' copies have landed, too, and all have read the stage before this one
      copy();
      const uint32_t at = ring + stage * kStageBytes + low;
      if (++stage == kStages) stage = 0;
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const uint4 a0 = load_shared(at ^ u << 6), a1 = load_shared((at ^ u << 6) + 1024);
        const uint32_t first[4] = {a0.x, a1.x, a0.y, a1.y}, second[4] = {a0.z, a1.z, a0.w, a1.w};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          mma<T>(sum[t], first, b[t][u].x, b[t][u].y);
          mma<T>(sum[t], second, b[t][u].z, b[t][u].w);
        }
      }
    }
    float* meeting = partial + tile % kBuffers<kTiles> * (kWarps * kTiles * 128);
    if (kBuffers<kTiles> == 1) __syncthreads();
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) meeting[((warp * kTiles + t) * 4 + i) * 32 + lane] = sum[t][i];
    __syncthreads();
    if (ends >= kTiles) continue;
    float total[4] = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
#pragma unroll
      for (int i = 0; i < 4; ++i) total[i] += meeting[((w * kTiles + ends) * 4 + i) * 32 + lane];
    finish<T, kEnds>(p, slice, tile, ends, g, q, end, total);
  }
}

/// The deepest ring that leaves room for m rows of x in `shared` bytes, or without room for them.
struct Layout {
  int stages = 2;
  bool x_inside = false;
};

int partial_bytes(int64_t m) { return m <= 8 ? kPartialBytes<1> : kPartialBytes<4>; }

Layout layout(int64_t m, int64_t k, int64_t shared) {
  const int64_t rows = m * padded_row(k) * 2, rest = shared - partial_bytes(m);
  for (int stages : {6, 4, 2})
    if (ring_bytes(stages) + rows <= rest) return {stages, true};
  // A shallow ring leaves the first level of cache to x.
  return {ring_bytes(4) <= rest ? 4 : 2, false};
}

template <class T, int kTiles, int kStages, Ends kEnds>
void run(Stream& stream, const Params& p) {
  const int64_t row_bytes = p.s.g.m * p.x_row * 2;
  const int64_t columns = p.s.g.end.columns / (p.s.rotary.half ? 2 : 1);
  const int64_t sms = std::max<int64_t>(1, cuda_stream(stream).device.limits.multiprocessors);
  const Grid grid{static_cast<unsigned>(std::min(sms, (columns + 3) / 4))};
  const size_t shared = static_cast<size_t>(ring_bytes(kStages) + kPartialBytes<kTiles> + row_bytes);
  launch_fast(stream, "skinny_linear", grid, kThreads, shared, skinny_kernel<T, kTiles, kStages, kEnds>, p);
}

Ends ends_of(const SkinnyParams& s, DType dtype) {
  const EpilogueParams& e = s.g.end;
  if (s.rotary.half) return Ends::kRotated;
  if (s.g.gated) return e.out.dtype == dtype ? Ends::kGatedHalf : Ends::kGeneral;
  const bool floats = e.out.dtype == DType::kF32 && (!e.residual.data || e.residual.dtype == DType::kF32);
  return floats && !s.g.gelu && !e.scale ? Ends::kFloat : Ends::kGeneral;
}

template <class T, int kTiles, Ends kEnds>
void with_stages(Stream& stream, const Params& p, int stages) {
  if (stages == 6) return run<T, kTiles, 6, kEnds>(stream, p);
  if (stages == 4) return run<T, kTiles, 4, kEnds>(stream, p);
  run<T, kTiles, 2, kEnds>(stream, p);
}

template <class T, int kTiles>
void with_ends(Stream& stream, const Params& p, int stages, Ends ends) {
  switch (ends) {
    case Ends::kRotated: return with_stages<T, kTiles, Ends::kRotated>(stream, p, stages);
    case Ends::kGatedHalf: return with_stages<T, kTiles, Ends::kGatedHalf>(stream, p, stages);
    case Ends::kFloat: return with_stages<T, kTiles, Ends::kFloat>(stream, p, stages);
    case Ends::kGeneral: return with_stages<T, kTiles, Ends::kGeneral>(stream, p, stages);
  }
}

}  // namespace

bool skinny_norms(int64_t m, int64_t k, int64_t shared) {
  // Every block norms all of the rows: beyond this a kernel of its own costs less.
  constexpr int64_t kMostElements = 8192;
  return m * k <= kMostElements && layout(m, k, shared).x_inside;
}

void skinny_linear(Stream& stream, DType dtype, const SkinnyParams& s, int64_t shared) {
  const auto [stages, x_inside] = layout(s.g.m, s.g.k, shared);
  TESSERA_CHECK(x_inside || !s.norm_weight, "skinny_linear norms no more rows than fit");
  const Params p{.s = s,
                 .x_row = x_inside ? padded_row(s.g.k) : 0,
                 .warps_a_row = kWarps / static_cast<int>(std::bit_ceil(static_cast<uint64_t>(std::min<int64_t>(s.g.m, kWarps)))),
                 .inverse_k = 1.0f / static_cast<float>(s.g.k)};
  dispatch_half(dtype, "linear", [&, stages = stages](auto zero) {
    using T = decltype(zero);
    if (s.g.m <= 8) return with_ends<T, 1>(stream, p, stages, ends_of(s, dtype));
    // More rows are for devices without wgmma: their rotation is a kernel of its own.
    TESSERA_CHECK(!s.rotary.half, "skinny_linear rotates at most 8 rows");
    with_stages<T, 4, Ends::kGeneral>(stream, p, stages);
  });
}

}  // namespace tessera::cuda
