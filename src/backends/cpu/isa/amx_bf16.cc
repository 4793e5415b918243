// Products of bf16 by AMX tiles: 16 rows by 16 columns by 32 k an instruction, f32 sums.
#include <immintrin.h>

#include "backends/cpu/isa/kernels.h"
#include "backends/cpu/isa/pack_pairs.h"

namespace tessera::cpu {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;   // of bf16: 64 bytes a tile row
constexpr int64_t kTileBytes = 1024;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/// All eight tiles are full: rows and k are padded with zeros instead. The registers belong to the calling thread.
void configure_tiles() {
  static const TileConfig config;
  _tile_loadconfig(&config);
  __asm__ volatile("" ::: "memory");  // g++ 12 believes that the instruction reads 8 bytes
}

/// Packed a: blocks of 16 rows, in each the tiles of 32 k one after the other, row-major inside, zero-padded.
void pack_a(const void* x, Element type, int64_t row_stride, int64_t rows, int64_t k, int64_t k_padded, void* a) {
  char* out = static_cast<char*>(a);
  const int64_t element = type == kElementF32 ? 4 : 2;
  for (int64_t row = 0; row < rows; row += kTileRows)
    for (int64_t i = 0; i < k_padded; i += kTileDepth, out += kTileBytes)
      for (int64_t r = 0; r < kTileRows; ++r) {
        const char* line = static_cast<const char*>(x) + (row + r) * row_stride * element;
        const __m512i pairs = row + r < rows ? load_pairs(line, type, i, k) : _mm512_setzero_si512();
        _mm512_storeu_si512(out + r * 64, pairs);
      }
}

/// The last tile of a panel whose k ends inside it, zero-padded: what lies behind may be anything.
const void* tail_tile(const char* b, int64_t pairs, int64_t k_stride, char* tile) {
  for (int64_t i = 0; i < kTileDepth / 2; ++i)
    _mm512_store_si512(tile + i * 64, i < pairs ? _mm512_loadu_si512(b + i * k_stride) : _mm512_setzero_si512());
  return tile;
}

void load_c(int64_t rows, const float* c, int64_t ldc, float* tile) {
  for (int64_t r = 0; r < kTileRows; ++r)
    _mm512_store_ps(tile + r * 16, r < rows ? _mm512_loadu_ps(c + r * ldc) : _mm512_setzero_ps());
}

void store_c(int64_t rows, const float* tile, float* c, int64_t ldc) {
  for (int64_t r = 0; r < rows; ++r) _mm512_storeu_ps(c + r * ldc, _mm512_load_ps(tile + r * 16));
}

/// 32 whole rows by two panels of whole tiles: sums go to and from c itself. Tiles 0-3 are sums, 4-5 rows, 6-7 columns.
void whole_block(const char* a0, const char* a1, const MultiplyArgs& args, int panel, float* c) {
  const char* b0 = static_cast<const char*>(args.panels[panel]);
  const char* b1 = static_cast<const char*>(args.panels[panel + 1]);
  float* below = c + kTileRows * args.ldc;
  const int64_t c_stride = args.ldc * static_cast<int64_t>(sizeof(float));
  if (args.accumulate) {
    _tile_loadd(0, c, c_stride);
    _tile_loadd(1, c + kPanel, c_stride);
    _tile_loadd(2, below, c_stride);
    _tile_loadd(3, below + kPanel, c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < args.k; k += kTileDepth, a0 += kTileBytes, a1 += kTileBytes) {
    _tile_loadd(6, b0, args.k_stride);
    _tile_loadd(4, a0, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b1, args.k_stride);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a1, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    b0 += kTileDepth / 2 * args.k_stride;
    b1 += kTileDepth / 2 * args.k_stride;
  }
  _tile_stored(0, c, c_stride);
  _tile_stored(1, c + kPanel, c_stride);
  _tile_stored(2, below, c_stride);
  _tile_stored(3, below + kPanel, c_stride);
}

/// The rest of a product: up to 32 rows (the second 16 may be absent) by two panels (the second may be absent: the first
/// stands in, and its result is dropped), k of any even length.
void block(const char* a0, const char* a1, int64_t rows0, int64_t rows1, const MultiplyArgs& args, int panel, int panels,
           float* c) {
  alignas(64) float buffer[4][256];
  alignas(64) char tails[2][kTileBytes];
  const char* b0 = static_cast<const char*>(args.panels[panel]);
  const char* b1 = static_cast<const char*>(args.panels[panel + panels - 1]);
  const int64_t rows[2] = {rows0, rows1};
  for (int i = 0; i < 4; ++i)
    load_c(args.accumulate && i % 2 < panels ? rows[i / 2] : 0, c + (i / 2) * kTileRows * args.ldc + i % 2 * kPanel,
           args.ldc, buffer[i]);
  _tile_loadd(0, buffer[0], 64);
  _tile_loadd(1, buffer[1], 64);
  _tile_loadd(2, buffer[2], 64);
  _tile_loadd(3, buffer[3], 64);
  for (int64_t k = 0; k < args.k; k += kTileDepth, a0 += kTileBytes, a1 += kTileBytes) {
    const int64_t pairs = (args.k - k) / 2;
    const void *t0 = b0, *t1 = b1;
    int64_t stride = args.k_stride;
    if (pairs < kTileDepth / 2) {
      t0 = tail_tile(b0, pairs, args.k_stride, tails[0]);
      t1 = tail_tile(b1, pairs, args.k_stride, tails[1]);
      stride = 64;
      __asm__ volatile("" ::: "memory");
    }
    _tile_loadd(6, t0, stride);
    _tile_loadd(7, t1, stride);
    _tile_loadd(4, a0, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (rows1 > 0) {
      _tile_loadd(5, a1, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    b0 += kTileDepth / 2 * args.k_stride;
    b1 += kTileDepth / 2 * args.k_stride;
  }
  _tile_stored(0, buffer[0], 64);
  _tile_stored(1, buffer[1], 64);
  _tile_stored(2, buffer[2], 64);
  _tile_stored(3, buffer[3], 64);
  __asm__ volatile("" ::: "memory");
  for (int i = 0; i < 4; ++i)
    if (i % 2 < panels)
      store_c(rows[i / 2], buffer[i], c + (i / 2) * kTileRows * args.ldc + i % 2 * kPanel, args.ldc);
}

void multiply(const MultiplyArgs& args) {
  configure_tiles();
  const int64_t block_bytes = (args.k + kTileDepth - 1) / kTileDepth * kTileBytes;  // of 16 packed rows
  const bool whole_depth = args.k % kTileDepth == 0;
  for (int p = 0; p < args.panel_count; p += 2) {
    const int panels = args.panel_count - p >= 2 ? 2 : 1;
    for (int64_t row = 0; row < args.rows; row += 2 * kTileRows) {
      const int64_t left = args.rows - row;
      const char* a0 = static_cast<const char*>(args.a) + row / kTileRows * block_bytes;
      const int64_t rows0 = left < kTileRows ? left : kTileRows;
      const int64_t rows1 = left - rows0 < kTileRows ? left - rows0 : kTileRows;
      float* c = args.c + row * args.ldc + p * kPanel;
      if (whole_depth && panels == 2 && rows1 == kTileRows)
        whole_block(a0, a0 + block_bytes, args, p, c);
      else
        block(a0, a0 + block_bytes, rows0, rows1, args, p, panels, c);
    }
  }
  _tile_release();
}

double peak(int64_t rounds) {
  alignas(64) char zeros[kTileBytes] = {};
  configure_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64);
  _tile_loadd(7, zeros, 64);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 4.0 * 2 * kTileRows * kPanel * kTileDepth * static_cast<double>(rounds);
}

}  // namespace

const ProductKernels& amx_bf16_products() {
  static const ProductKernels kProducts = {
      .a_element = 2, .a_rows = kTileRows, .a_depth = kTileDepth, .pack_a = pack_a, .multiply = multiply, .peak = peak};
  return kProducts;
}

}  // namespace tessera::cpu
