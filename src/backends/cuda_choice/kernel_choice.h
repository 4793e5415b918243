#pragma once

#include <cstdint>
#include <vector>

#include "backends/cuda_choice/row_shape.h"
#include "core/device_limits.h"
#include "ops/backend.h"

namespace tessera::cuda {

/// What serves the dense product of `linear`.
enum class LinearKernel : uint8_t {
  kWgmma,     ///< own sm_90a kernel: bulk tensor copies, wgmma, fused epilogues
  kCublasLt,  ///< library product, epilogue by a separate pass where it has one
  kMma,       ///< own sm_80 kernel in 48 KB: cp.async, mma.sync, fused epilogues
  kPlain,     ///< always fits
};

/// What serves attention.
enum class AttentionKernel : uint8_t {
  kWgmma,  ///< sm_90a
  kMma,    ///< sm_80 style in 48 KB
  kPlain,  ///< always fits
};

/// Everything the choice looks at.
struct ChoiceInput {
  DeviceLimits limits;
  DType weights = DType::kBF16;
  bool cublaslt = true;   ///< the library was found
  bool imposed = false;   ///< --limit was given: the library chooses kernels by the real device, so it is left out
};

/// The kernel of each operator that has more than one. Operators that are not here have one kernel of the plain family.
struct KernelPlan {
  LinearKernel linear = LinearKernel::kPlain;        ///< bias-free products, residual at most
  LinearKernel linear_fused = LinearKernel::kPlain;  ///< bias, activation or layer scale in the epilogue
  /// Up to 32 rows, which stream the weight once: shared memory that a block takes, 0: as other products.
  int64_t skinny_bytes = 0;
  bool narrow = false;  ///< 9 to 64 rows: wgmma with the weight's rows as its rows
  bool row_layer = false;  ///< a decoder layer of one sequence whose shape fits (row_shape.h): three kernels
  AttentionKernel tile_attention_64 = AttentionKernel::kPlain;
  AttentionKernel tile_attention_128 = AttentionKernel::kPlain;
  AttentionKernel prefill_attention_64 = AttentionKernel::kPlain;
  AttentionKernel prefill_attention_128 = AttentionKernel::kPlain;
  AttentionKernel decode_attention = AttentionKernel::kPlain;  ///< head dims 64 and 128
};

/// A pure function: the first candidate of each operator that fits, in the order of the enums (products: see
/// candidates in the .cc). `report`, when given, receives one line an operator, with the reasons.
KernelPlan choose_kernels(const ChoiceInput& input, std::vector<KernelChoice>* report = nullptr);

/// Bytes of shared memory of a block of each kernel, all of it static knowledge: the kernels assert it.
namespace shared_bytes {
inline constexpr int64_t kWgmmaLinear = 3 * (128 + 256) * 64 * 2 + 128 * 256 * 2 + 6144 + 1536 + 1024 + 256;  ///< 3 stages, sums on their way, factors, alignment, barriers
inline constexpr int64_t kWgmmaAttention64 = (2 * 128 * 64 + 2 * 3 * 208 * 64) * 2 + 1024 + 256;  ///< 2 of Q, 3 stages of K and V
inline constexpr int64_t kWgmmaPrefill64 = (2 * 192 * 64 + 2 * 4 * 128 * 64) * 2 + 1024 + 256;     ///< 2 of Q, 4 stages of K and V
inline constexpr int64_t kWgmmaPrefill128 = (2 * 192 * 128 + 2 * 2 * 128 * 128) * 2 + 1024 + 256;  ///< 2 stages
/// 8 warps' rings of 6, 4 or 2 stages of 2 KB, and rows of x in what is left. The largest is just over half of a Hopper
/// multiprocessor: beside it the next product's smaller ring fills while one empties, but no second block of its own kind lies
/// there (skinny_linear.cu).
inline constexpr int64_t kSkinny = (113 << 10) + 512;
inline constexpr int64_t kSkinnyMedium = 96 << 10;
inline constexpr int64_t kSkinnySmall = 48 << 10;
inline constexpr int64_t kNarrow = 208 << 10;  ///< at most: stages, and memory behind them that wgmma's whole tiles read
inline constexpr int64_t kRowLayer = row::kAttendFixedBytes + row::kEarlyTiles * row::kTileRoom;
inline constexpr int64_t kMmaLinear = 3 * (128 * 32 + 128 * 32) * 2;            ///< 3 stages: 48 KB
inline constexpr int64_t kMmaAttention64 = 3 * 64 * 64 * 2;    ///< two stages of K and one of V, 64 keys: 24 KB
inline constexpr int64_t kMmaAttention128 = 3 * 64 * 128 * 2;  ///< 48 KB
/// Partial outputs, f32, of 4 warps.
inline constexpr int64_t kMmaDecode = 4 * 16 * (128 + 8) * 4;
inline constexpr int64_t kRingDecode = 1024 + (4 * 2 * 16 * 128 * 2) * 2 + 4 * 7 * 2 * (128 + 4) * 4 + 8;  ///< rings of 4 warps, and what those of 7 splits found of two rows
}  // namespace shared_bytes

}  // namespace tessera::cuda
