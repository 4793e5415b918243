#pragma once

// What the NVIDIA kernels share: vector types, mma.sync, asynchronous copies. The plain family does not use it.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backends/cuda/plain/epilogue_math.h"
#include "backends/cuda/plain/portable.h"

#include <type_traits>

namespace tessera::cuda {

/// The device type of a dtype's elements.
template <class T>
struct Half2;
template <>
struct Half2<__nv_bfloat16> {
  using type = __nv_bfloat162;
  static constexpr DType kDType = DType::kBF16;
};
template <>
struct Half2<__half> {
  using type = __half2;
  static constexpr DType kDType = DType::kF16;
};

/// Calls f with a value of the 16-bit device type of `dtype`. Requires: bf16 or f16.
template <class F>
void dispatch_half(DType dtype, const char* op, F&& f) {
  if (dtype == DType::kBF16) return f(__nv_bfloat16{});
  TESSERA_CHECK(dtype == DType::kF16, std::string(op) + ": dtype " + dtype_name(dtype) + " is not of 16 bits");
  f(__half{});
}

template <class T>
__device__ __forceinline__ uint32_t pack2(float a, float b) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&v);
  } else {
    const __half2 v = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
}

template <class T>
__device__ __forceinline__ float2 unpack2(uint32_t bits) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  }
}

template <class T>
__device__ __forceinline__ void unpack8(uint4 bits, float (&to)[8]) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack2<T>(words[i]);
    to[2 * i] = pair.x;
    to[2 * i + 1] = pair.y;
  }
}
template <class T>
__device__ __forceinline__ uint4 pack8(const float (&v)[8]) {
  return make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
}
/// 8 floats that no kernel writes while this one runs. Requires: 16-byte alignment.
__device__ __forceinline__ void load8(const float* from, float (&to)[8]) {
  const float4 a = __ldg(reinterpret_cast<const float4*>(from)), b = __ldg(reinterpret_cast<const float4*>(from) + 1);
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

/// c += a b for a 16 x 16 (row), b 16 x 8 (column), c 16 x 8 in f32. Lane l, g = l / 4, q = l % 4:
/// a[0], a[1]: rows g and g + 8, columns 2q, 2q + 1; a[2], a[3]: the same, columns + 8; b[0], b[1]: rows 2q, 2q + 1 and
/// + 8, column g; c[0..1]: row g, columns 2q, 2q + 1; c[2..3]: row g + 8.
template <class T>
__device__ __forceinline__ void mma(float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void load_matrix_x4(uint32_t* r, uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t* r, uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

__device__ __forceinline__ uint4 load_shared(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
  return v;
}

/// 16 bytes from global to shared memory; zeros when `valid` is false.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ float load_shared_float(uint32_t address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}

__device__ __forceinline__ void store_shared_float(uint32_t address, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
}
__device__ __forceinline__ void store_shared4(uint32_t address, float4 v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

/// Programmatic dependent launch: nothing that an earlier kernel writes may be touched before this.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The next kernel may be brought onto the device from here on (it still waits for this one to end).
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Code that a kernel runs once comes late where other kernels stream: measured, see docs/decisions.md. So what follows the wait
/// for the kernel ahead may be run twice, `for (int real = kRehearsal; real < 2; ++real)`: before the wait, when `real` is 0, on
/// whatever lies in shared memory and registers. A rehearsal writes nothing to global memory and reads nothing there that a
/// kernel writes, which the first level of cache would keep. Those that read what is being written meanwhile begin with first_run() (launch.h).
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
inline constexpr int kRehearsal = 0;
#else
inline constexpr int kRehearsal = 1;  // nothing to wait for
#endif

/// Stores two neighbours of a row; `columns` bounds the second. Requires an even column and an even stride.
__device__ __forceinline__ void store_pair(const plain::Elements& to, int64_t row, int64_t column, int64_t columns,
                                           float a, float b) {
  if (column + 1 >= columns) {
    if (column < columns) to.set(row, column, a);
    return;
  }
  const int64_t at = row * to.stride + column;
  if (to.dtype == DType::kF32) {
    *reinterpret_cast<float2*>(static_cast<float*>(to.data) + at) = make_float2(a, b);
  } else {
    const uint32_t bits = to.dtype == DType::kBF16 ? pack2<__nv_bfloat16>(a, b) : pack2<__half>(a, b);
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(to.data) + at) = bits;
  }
}

__device__ __forceinline__ float2 load_pair(const plain::Elements& from, int64_t row, int64_t column, int64_t columns) {
  if (column + 1 >= columns)
    return make_float2(column < columns ? from.get(row, column) : 0.0f, 0.0f);
  const int64_t at = row * from.stride + column;
  if (from.dtype == DType::kF32) return *reinterpret_cast<const float2*>(static_cast<const float*>(from.data) + at);
  const uint32_t bits = *reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(from.data) + at);
  return from.dtype == DType::kBF16 ? unpack2<__nv_bfloat16>(bits) : unpack2<__half>(bits);
}

/// 2^v and 1 / v by the fast units, results below 2^-126 as zero: without that the compiler adds steps for subnormals.
__device__ __forceinline__ float fast_exp2(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}
__device__ __forceinline__ float fast_reciprocal(float v) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

/// GELU with erf: v less what the tail of the normal distribution beyond |v| takes of it. The tail is 2 to a polynomial of degree 5
/// (fitted to log2 of it on [0, 7] by reweighted least squares; falls without end beyond): one fast unit, where a formula of
/// erf takes two and twice the steps. Of the tail 3e-4 at most are wrong, of the result 4e-5: far below its rounding to 16 bits.
__device__ __forceinline__ float fast_gelu(float v) {
  const float a = fabsf(v);
  float log2_tail = fmaf(-2.15633576e-04f, a, 4.68080821e-03f);
  log2_tail = fmaf(log2_tail, a, -4.38910089e-02f);
  log2_tail = fmaf(log2_tail, a, -4.70760301e-01f);
  log2_tail = fmaf(log2_tail, a, -1.14568926f);
  log2_tail = fmaf(log2_tail, a, -1.00040648f);
  return fmaf(-a, fast_exp2(log2_tail), fmaxf(v, 0.0f));
}

/// Two neighbours that every thread reads and none writes: loads may move ahead of stores.
__device__ __forceinline__ float2 constant_pair(const float* v, int64_t column, int64_t columns) {
  if (column + 1 < columns && reinterpret_cast<uintptr_t>(v + column) % 8 == 0)
    return __ldg(reinterpret_cast<const float2*>(v + column));
  return make_float2(column < columns ? __ldg(v + column) : 0.0f, column + 1 < columns ? __ldg(v + column + 1) : 0.0f);
}

/// Sums of an ordinary weight to their places: out = residual + scale * act(sum + bias). A thread's sums are kTiles
/// accumulator tiles of 8 columns: sums[4 * t + 2 * h .. + 1] are row `row` + 8 h, columns column + 8 t (+ 1). All that is
/// read is read before anything is written: a load may not pass a store that could alias it, and one load's latency a
/// pair would cost more than the product.
template <int kTiles>
__device__ __forceinline__ void finish_tiles(const EpilogueParams& e, bool with_gelu, int64_t row, int64_t rows,
                                             int64_t column, const float* sums) {
  float2 bias[kTiles], scale[kTiles], residual[2][kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    bias[t] = e.bias ? constant_pair(e.bias, column + 8 * t, e.columns) : make_float2(0, 0);
    scale[t] = e.scale ? constant_pair(e.scale, column + 8 * t, e.columns) : make_float2(1, 1);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      residual[h][t] = e.residual.data && row + 8 * h < rows && column + 8 * t < e.columns
                           ? load_pair(e.residual, e.residual_row(row + 8 * h), column + 8 * t, e.columns)
                           : make_float2(0, 0);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (row + 8 * h >= rows) continue;
    const int64_t to = e.out_row(row + 8 * h);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (column + 8 * t >= e.columns) continue;
      float a = sums[4 * t + 2 * h] + bias[t].x, b = sums[4 * t + 2 * h + 1] + bias[t].y;
      if (with_gelu) {
        a = fast_gelu(a);
        b = fast_gelu(b);
      }
      store_pair(e.out, to, column + 8 * t, e.columns, fmaf(a, scale[t].x, residual[h][t].x),
                 fmaf(b, scale[t].y, residual[h][t].y));
    }
  }
}

/// By the fast reciprocal: a few ulp in f32, far below the rounding to 16 bits that follows.
__device__ __forceinline__ float fast_silu(float v) { return v * fast_reciprocal(1.0f + fast_exp2(v * -1.4426950408889634f)); }

/// The usual ends of a product, without a branch an element: chosen on the host, so that a kernel's loads stand in one
/// straight line and overlap. Everything else takes finish_tiles.
enum class EndKind : uint8_t {
  kGeneral,
  kHalf,   ///< 16-bit result in 16-byte aligned rows; bias and GELU at most
  kFloat,  ///< f32 result; bias, layer scale, f32 residual
  kStream,  ///< 16-bit result and residual in 16-byte aligned rows; bias, layer scale
};

inline EndKind end_kind(const EpilogueParams& e, DType dtype) {
  if (e.segment) return EndKind::kGeneral;
  const bool aligned = (!e.bias || reinterpret_cast<uintptr_t>(e.bias) % 8 == 0) &&
                       (!e.scale || reinterpret_cast<uintptr_t>(e.scale) % 8 == 0);
  if (!aligned) return EndKind::kGeneral;
  const bool vectors = reinterpret_cast<uintptr_t>(e.out.data) % 16 == 0 && e.out.stride % 8 == 0;
  const bool half = e.out.dtype == dtype && dtype != DType::kF32 && vectors;
  if (half && !e.scale && !e.residual.data) return EndKind::kHalf;
  if (half && e.residual.dtype == dtype && e.residual.data && reinterpret_cast<uintptr_t>(e.residual.data) % 16 == 0 &&
      e.residual.stride % 8 == 0)
    return EndKind::kStream;
  if (e.out.dtype == DType::kF32 && (!e.residual.data || e.residual.dtype == DType::kF32)) return EndKind::kFloat;
  return EndKind::kGeneral;
}

template <int kTiles>
__device__ __forceinline__ void load_vector(float2 (&to)[kTiles], const float* from, int column, float otherwise) {
  if (from) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) to[t] = __ldg(reinterpret_cast<const float2*>(from + column + 8 * t));
  } else {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) to[t] = make_float2(otherwise, otherwise);
  }
}

/// Lane q of four neighbours holds words q of the 16-byte pieces 0 to 3, and then piece q whole.
__device__ __forceinline__ void gather_pieces(uint32_t* words, int q) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const bool upper = (q & bit) != 0;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? words[i] : words[i + bit], bit);
      (upper ? words[i] : words[i + bit]) = got;
    }
}

/// Vector stores that stay whole: under register pressure the compiler would take them apart.
__device__ __forceinline__ void store_whole(void* to, const uint32_t* words) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}
__device__ __forceinline__ void store_whole(float* to, float2 v) {
  asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "f"(v.x), "f"(v.y) : "memory");
}

/// kPieces pairs of one row, a pair a tile of 8 columns, stored 16 bytes at a time: whole sectors, a quarter of the stores.
/// All lanes call it, `inside` says whose row exists. `to` is the row at the first tile's column 0.
template <class T, int kPieces>
__device__ __forceinline__ void store_pieces(T* to, uint32_t* words, int q, bool inside) {
  if constexpr (kPieces % 4 == 0) {
#pragma unroll
    for (int t = 0; t < kPieces; t += 4) {
      gather_pieces(words + t, q);
      if (inside) store_whole(to + 8 * (t + q), words + t);
    }
  } else if (inside) {
#pragma unroll
    for (int t = 0; t < kPieces; ++t) *reinterpret_cast<uint32_t*>(to + 8 * t + 2 * q) = words[t];
  }
}

/// Requires: columns [column, column + 8 kTiles) lie inside; `column` counts from the lane's pair.
template <class T, int kTiles>
__device__ __forceinline__ void finish_half(const EpilogueParams& e, bool with_gelu, int row, int rows, int column,
                                            const float* sums) {
  float2 bias[kTiles];
  load_vector(bias, e.bias, column, 0.0f);
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float2 v[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) v[t] = make_float2(sums[4 * t + 2 * h] + bias[t].x, sums[4 * t + 2 * h + 1] + bias[t].y);
    if (with_gelu) {  // one branch for all, or each pair would wait for the one before
#pragma unroll
      for (int t = 0; t < kTiles; ++t) v[t] = make_float2(fast_gelu(v[t].x), fast_gelu(v[t].y));
    }
    uint32_t words[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) words[t] = pack2<T>(v[t].x, v[t].y);
    T* to = static_cast<T*>(e.out.data) + (row + 8 * h) * e.out.stride + column - 2 * q;
    store_pieces<T, kTiles>(to, words, q, row + 8 * h < rows);
  }
}

template <int kTiles>
__device__ __forceinline__ void finish_float(const EpilogueParams& e, bool with_gelu, int row, int rows, int column,
                                             const float* sums) {
  float2 bias[kTiles], scale[kTiles];
  load_vector(bias, e.bias, column, 0.0f);
  load_vector(scale, e.scale, column, 1.0f);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (row + 8 * h >= rows) continue;
    float2 residual[kTiles];
    const float* from = static_cast<const float*>(e.residual.data);
    if (from) {
      from += (row + 8 * h) * e.residual.stride + column;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) residual[t] = *reinterpret_cast<const float2*>(from + 8 * t);
    } else {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) residual[t] = make_float2(0, 0);
    }
    float* to = static_cast<float*>(e.out.data) + (row + 8 * h) * e.out.stride + column;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float a = sums[4 * t + 2 * h] + bias[t].x, b = sums[4 * t + 2 * h + 1] + bias[t].y;
      if (with_gelu) {
        a = fast_gelu(a);
        b = fast_gelu(b);
      }
      *reinterpret_cast<float2*>(to + 8 * t) = make_float2(fmaf(a, scale[t].x, residual[t].x), fmaf(b, scale[t].y, residual[t].y));
    }
  }
}

/// Gate and up alternate by tiles; see finish_gated_tiles. Requires: a 16-bit result, all columns inside.
template <class T, int kPairs>
__device__ __forceinline__ void finish_gated_half(const EpilogueParams& e, int row, int rows, int column, const float* sums) {
  float2 gate[kPairs], up[kPairs];
  load_vector(gate, e.bias, column, 0.0f);
  load_vector(up, e.bias ? e.bias + e.columns : nullptr, column, 0.0f);
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint32_t words[kPairs];
#pragma unroll
    for (int t = 0; t < kPairs; ++t) {
      const float* g = sums + 8 * t + 2 * h;
      words[t] = pack2<T>(fast_silu(g[0] + gate[t].x) * (g[4] + up[t].x), fast_silu(g[1] + gate[t].y) * (g[5] + up[t].y));
    }
    T* to = static_cast<T*>(e.out.data) + (row + 8 * h) * e.out.stride + column - 2 * q;
    store_pieces<T, kPairs>(to, words, q, row + 8 * h < rows);
  }
}

/// The same for a gated weight: tiles 2 t and 2 t + 1 are gate and up of columns column + 8 t (+ 1) of the result.
template <int kPairs>
__device__ __forceinline__ void finish_gated_tiles(const EpilogueParams& e, int64_t row, int64_t rows, int64_t column,
                                                   const float* sums) {
  float2 gate[kPairs], up[kPairs];
#pragma unroll
  for (int t = 0; t < kPairs; ++t) {
    gate[t] = e.bias ? constant_pair(e.bias, column + 8 * t, e.columns) : make_float2(0, 0);
    up[t] = e.bias ? constant_pair(e.bias + e.columns, column + 8 * t, e.columns) : make_float2(0, 0);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (row + 8 * h >= rows) continue;
#pragma unroll
    for (int t = 0; t < kPairs; ++t) {
      if (column + 8 * t >= e.columns) continue;
      const float* g = sums + 8 * t + 2 * h;
      store_pair(e.out, row + 8 * h, column + 8 * t, e.columns, fast_silu(g[0] + gate[t].x) * (g[4] + up[t].x),
                 fast_silu(g[1] + gate[t].y) * (g[5] + up[t].y));
    }
  }
}

/// Two neighbouring gates and their ups, no bias yet added.
__device__ __forceinline__ void finish_gated(const EpilogueParams& e, int64_t row, int64_t column, float2 gate, float2 up) {
  if (column >= e.columns) return;
  if (e.bias) {
    const float2 g = constant_pair(e.bias, column, e.columns), u = constant_pair(e.bias + e.columns, column, e.columns);
    gate = make_float2(gate.x + g.x, gate.y + g.y);
    up = make_float2(up.x + u.x, up.y + u.y);
  }
  store_pair(e.out, row, column, e.columns, fast_silu(gate.x) * up.x, fast_silu(gate.y) * up.y);
}

template <int kTiles>
__device__ __noinline__ void finish_general(const EpilogueParams& e, bool gated, bool with_gelu, int64_t row, int64_t rows,
                                            int64_t packed, int lane_column, const float* sums) {
  if (gated)
    finish_gated_tiles<kTiles / 2>(e, row, rows, packed / 2 + lane_column, sums);
  else
    finish_tiles<kTiles>(e, with_gelu, row, rows, packed + lane_column, sums);
}

/// Uncommon ends go through memory to a function of their own, or their code would be most of every kernel.
template <int kTiles>
__device__ __forceinline__ void finish_apart(const EpilogueParams& e, bool gated, bool with_gelu, int64_t row, int64_t rows,
                                             int64_t packed, int lane_column, const float* sums) {
  float apart[4 * kTiles];
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) apart[i] = sums[i];
  finish_general<kTiles>(e, gated, with_gelu, row, rows, packed, lane_column, apart);
}

/// A thread's share of a product's tile to its places, by the kind of end. `packed` is the column of the packed weight.
template <class T, int kTiles>
__device__ __forceinline__ void finish_any(const EpilogueParams& e, EndKind kind, bool gated, bool with_gelu, int64_t row,
                                           int64_t rows, int64_t packed, int lane_column, const float* sums) {
  const auto general = [&] { finish_apart<kTiles>(e, gated, with_gelu, row, rows, packed, lane_column, sums); };
  if (gated) {
    const int64_t column = packed / 2;
    if (kind == EndKind::kHalf && column + 4 * kTiles <= e.columns && e.columns % 2 == 0)
      finish_gated_half<T, kTiles / 2>(e, static_cast<int>(row), static_cast<int>(rows), static_cast<int>(column) + lane_column, sums);
    else
      general();
    return;
  }
  const bool whole = packed + 8 * kTiles <= e.columns;
  if (kind == EndKind::kHalf && whole)
    finish_half<T, kTiles>(e, with_gelu, static_cast<int>(row), static_cast<int>(rows), static_cast<int>(packed) + lane_column, sums);
  else if (kind == EndKind::kFloat && whole)
    finish_float<kTiles>(e, with_gelu, static_cast<int>(row), static_cast<int>(rows), static_cast<int>(packed) + lane_column, sums);
  else
    general();
}

}  // namespace tessera::cuda
