#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera {

/// The vector steps of a resample. All of them work on *words* of 32 bits that hold `group` neighbouring
/// values (pixels along the axis of the pass, of one channel), so that one multiply-add instruction covers a
/// group. Weights have 22 fraction bits and a sign; no instruction multiplies 8 by 24 bits, so each weight is
/// split into `planes` parts that fit one, and the parts' sums are put together at the end: exact, modulo
/// 2^32, which holds every possible sum.
///
/// Buffers have slack for whole vectors: lane counts may be rounded up to kResampleLanes.
struct ResampleKernels {
  int group;   // values in a word
  int rows;    // rows of a strip: lanes of a vector
  int planes;  // words of weights for a group

  /// Splits the weights of one group: weights[group] -> words[planes].
  void (*split_weights)(const int32_t* weights, uint32_t* words);

  /// Turns a strip of interleaved RGB rows into words along x: words [ceil(width / group), 3, rows], padded
  /// to a multiple of 4 pixels with whatever follows. Each row must have 4 readable bytes after its last
  /// pixel group of four.
  void (*gather)(const uint8_t* const* strip, int width, uint32_t* words);

  /// The horizontal pass of a strip. first[o] is the first word of output o, which has `count` words with
  /// weights [out, count, planes]; out is a multiple of 4. Results are words along y: for group g of the
  /// strip's rows, channel c and output o at results[g][c * channel_stride + o].
  void (*horizontal)(const uint32_t* words, const int32_t* first, const uint32_t* weights, int count, int out,
                     size_t channel_stride, uint32_t* const* results);

  /// Words along y of `group` rows: words[i] holds byte i of each row.
  void (*interleave)(const uint8_t* const* rows, size_t bytes, uint32_t* words);

  /// The vertical pass of one output row: `count` word rows with weights [count, planes].
  void (*vertical)(const uint32_t* const* word_rows, const uint32_t* weights, int count, size_t lanes,
                   uint8_t* out);
};

/// Lane counts are rounded up to this by the kernels.
inline constexpr size_t kResampleLanes = 64;

/// nullptr where the program was built for another architecture.
const ResampleKernels* avx2_resample_kernels();
const ResampleKernels* avx512_resample_kernels();

}  // namespace tessera
