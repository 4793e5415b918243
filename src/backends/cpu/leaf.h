#pragma once

#include <cstddef>
#include <cstdint>

/// The innermost loops of the CPU's operators: one table of functions per instruction set, each working on one thread's
/// share. Plain data only, and no inline functions: the sources behind a table are compiled with that set's flags, and
/// nothing compiled so may leak into the rest of the program.
///
/// Bitwise rule: what a function computes for one row depends on that row's numbers alone, never on the other rows of the
/// call, so that an operator's result is the same in every batch.
namespace tessera::cpu {

/// Floating element types, in the order of the tables' arrays.
enum Element : int { kElementF32 = 0, kElementBF16 = 1, kElementF16 = 2 };

/// Columns of a panel: the packed form of a [n, k] matrix is a sequence of panels of 16 rows of the matrix (16 columns of
/// the product), zero-padded, each ordered by k: f32 and f16 [k][16]; bf16 [k / 2][16][2], the order that dot product and
/// matrix instructions read.
inline constexpr int kPanel = 16;

struct MultiplyArgs {
  const void* a = nullptr;              ///< from pack_a
  int64_t rows = 0;
  int64_t k = 0;                        ///< even for bf16 panels
  const void* const* panels = nullptr;  ///< first element of each panel
  int panel_count = 0;
  int64_t k_stride = 0;                 ///< bytes from one k (bf16: pair of k) to the next inside a panel
  float* c = nullptr;                   ///< [rows, ldc], 16 columns a panel
  int64_t ldc = 0;
  bool accumulate = false;              ///< c += instead of c =
};

/// Products with panels of one element type.
struct ProductKernels {
  size_t a_element = 4;  ///< bytes of one element of packed a
  int64_t a_rows = 1;    ///< packed a has its rows rounded up to this
  int64_t a_depth = 1;   ///< and its k to this
  /// With at most so many rows, packed a of a k made of pieces is the packed a's of the pieces, one after the other.
  int64_t a_group = 1;
  /// Rows of x, row_stride elements apart, into the form that multiply reads. The first k columns, zero-padded to k_padded.
  void (*pack_a)(const void* x, Element type, int64_t row_stride, int64_t rows, int64_t k, int64_t k_padded,
                 void* a) = nullptr;
  /// c (+)= a b. Each element of c is one sum over k in ascending order, whatever the number of rows.
  void (*multiply)(const MultiplyArgs& args) = nullptr;
  /// True when pack_a of a single row of this element type is a copy: the row itself may be handed to multiply.
  bool row_is_packed = false;
  /// Runs `rounds` rounds of the set's multiplications on registers alone, as many independent ones as hide their latency,
  /// and returns the FLOP done: what the processor's units can do. Null where nothing is claimed.
  double (*peak)(int64_t rounds) = nullptr;
};

struct NormRowArgs {
  bool layer = false;  ///< LayerNorm, else RMS norm
  const void* x = nullptr;
  Element x_type = kElementF32;
  int64_t n = 0;
  const float* weight = nullptr;
  const float* bias = nullptr;  ///< or null
  float eps = 0;
  void* out = nullptr;
  Element out_type = kElementF32;
};

enum RowActivation : int { kRowNone = 0, kRowGelu = 1, kRowSiluMul = 2 };

/// out = residual + scale * act(c + bias) over n columns of one row. For kRowSiluMul `c` has the gates and `up` the ups.
struct EpilogueRowArgs {
  const float* c = nullptr;
  const float* up = nullptr;
  int64_t n = 0;
  RowActivation activation = kRowNone;
  const float* bias = nullptr;     ///< or null
  const float* bias_up = nullptr;  ///< or null
  const float* scale = nullptr;    ///< or null
  const void* residual = nullptr;  ///< or null
  Element residual_type = kElementF32;
  void* out = nullptr;
  Element out_type = kElementF32;
};

/// One block of keys of a flash-style softmax, for `rows` queries. scores [rows, lds] become exp(scale * (score - new
/// maximum)), zero from `visible[row]` on up to `keys`; the running maximum (of raw scores) and sum are updated;
/// rescale[row] is the factor for what was summed before.
struct SoftmaxArgs {
  float* scores = nullptr;
  int64_t lds = 0;
  int64_t rows = 0;
  int64_t keys = 0;                  ///< columns to fill, multiple of 16
  const int32_t* visible = nullptr;  ///< per row: keys of this block that it sees, 0..keys
  float scale = 1;
  float* maximum = nullptr;  ///< -inf at first
  float* sum = nullptr;      ///< 0 at first
  float* rescale = nullptr;
};

struct LeafKernels {
  const char* name = "";
  ProductKernels products[3];  ///< by the panels' element type
  void (*norm_row)(const NormRowArgs& args) = nullptr;
  void (*epilogue_row)(const EpilogueRowArgs& args) = nullptr;
  void (*softmax)(const SoftmaxArgs& args) = nullptr;
  /// x[i] *= factor.
  void (*scale_row)(float* x, int64_t n, float factor) = nullptr;
  /// out[i] = x[i] * factor, rounded to the type.
  void (*store_row)(const float* x, int64_t n, float factor, void* out, Element type) = nullptr;
  /// Transposes `rows` <= 16 rows of `words` 32-bit words, `stride` bytes apart, into [words][16]; lanes past the rows become
  /// zero. Rows of f32 or of bf16 pairs become a panel so.
  void (*transpose_words)(const void* x, int64_t stride, int64_t rows, int64_t words, void* panel) = nullptr;
  /// out[i] = x[i] as f32.
  void (*load_row)(const void* x, Element type, int64_t n, float* out) = nullptr;
  /// The largest of n numbers and its lowest index; NaN is smaller than anything.
  int64_t (*argmax)(const float* x, int64_t n) = nullptr;
  /// Sum of exp(x[i] - maximum).
  double (*sum_exp)(const float* x, int64_t n, float maximum) = nullptr;
};

/// The readable reference, in portable C++.
const LeafKernels& plain_kernels();

}  // namespace tessera::cpu
