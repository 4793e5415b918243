#include "backends/cuda_choice/kernel_choice.h"

#include <algorithm>
#include <optional>

namespace tessera::cuda {
namespace {

/// One kernel that could serve an operator, and what it needs.
struct Candidate {
  const char* name;
  int id;                     ///< the operator's enum
  int64_t shared_memory = 0;  ///< bytes a block
  bool tensor_cores = false;  ///< mma.sync on bf16 and f16, warps of 32
  bool wgmma = false;
  bool library = false;
  bool f32 = false;           ///< serves f32 weights, too
};

int64_t shared_limit(const DeviceLimits& limits) {
  return std::max(limits.shared_memory_per_block, limits.shared_memory_optin);
}

/// Why a candidate can't be taken; nothing when it can.
std::optional<std::string> refusal(const Candidate& c, const ChoiceInput& in) {
  if (c.wgmma && !in.limits.wgmma) return "needs wgmma (compute capability 9.0)";
  if (c.tensor_cores && !in.limits.tensor_cores_bf16) return "needs mma.sync on bf16 (compute capability 8.0)";
  if (c.tensor_cores && in.limits.warp_size != 32)
    return "needs warps of 32 threads; the device has " +
           (in.limits.warp_size ? std::to_string(in.limits.warp_size) : std::string("an unknown number"));
  if (!c.f32 && in.weights == DType::kF32) return "serves bf16 and f16 only";
  if (c.library && in.imposed) return "a library chooses by the real device, so it is left out while a limit is imposed";
  if (c.library && in.limits.compute_capability == 0) return "NVIDIA's library; the device is not known to be one of NVIDIA's";
  if (c.library && !in.cublaslt) return "libcublasLt.so.13 was not found";
  if (c.shared_memory > shared_limit(in.limits))
    return "needs " + std::to_string(c.shared_memory) + " bytes of shared memory a block; the limit is " +
           std::to_string(shared_limit(in.limits));
  return std::nullopt;
}

/// The first candidate that fits; the last one always does.
int choose(const char* op, const std::vector<Candidate>& candidates, const ChoiceInput& in,
           std::vector<KernelChoice>* report) {
  KernelChoice line{.op = std::string(op) + " " + dtype_name(in.weights)};
  for (const Candidate& c : candidates) {
    if (auto reason = refusal(c, in)) {
      line.refused.emplace_back(c.name, *reason);
      continue;
    }
    line.kernel = c.name;
    line.reason = c.library              ? "library present, no limit imposed"
                  : c.shared_memory == 0 ? "needs no more than any device has"
                                         : std::to_string(c.shared_memory) + " of " +
                                               std::to_string(shared_limit(in.limits)) + " bytes of shared memory";
    if (report) report->push_back(line);
    return c.id;
  }
  return candidates.back().id;
}

template <class E>
constexpr int id(E e) {
  return static_cast<int>(e);
}

}  // namespace

KernelPlan choose_kernels(const ChoiceInput& input, std::vector<KernelChoice>* report) {
  namespace bytes = shared_bytes;
  using L = LinearKernel;
  using A = AttentionKernel;
  const Candidate library{.name = "cublaslt", .id = id(L::kCublasLt), .library = true, .f32 = true};
  const Candidate mma{"mma", id(L::kMma), bytes::kMmaLinear, true};
  const Candidate wgmma{"wgmma", id(L::kWgmma), bytes::kWgmmaLinear, true, true};
  const Candidate attention_wgmma_64{"wgmma", id(A::kWgmma), bytes::kWgmmaAttention64, true, true};
  const Candidate prefill_wgmma_64{"wgmma", id(A::kWgmma), bytes::kWgmmaPrefill64, true, true};
  const Candidate prefill_wgmma_128{"wgmma", id(A::kWgmma), bytes::kWgmmaPrefill128, true, true};
  const Candidate plain{.name = "plain", .id = id(L::kPlain), .f32 = true};
  const Candidate attention_mma_64{"mma", id(A::kMma), bytes::kMmaAttention64, true};
  const Candidate attention_mma_128{"mma", id(A::kMma), bytes::kMmaAttention128, true};
  const Candidate attention_plain{.name = "plain", .id = id(A::kPlain), .f32 = true};

  KernelPlan plan;
  plan.linear = L(choose("linear", {library, wgmma, mma, plain}, input, report));
  plan.linear_fused = L(choose("linear, fused epilogue", {wgmma, library, mma, plain}, input, report));
  const Candidate skinny{"skinny, 113 KB", bytes::kSkinny, bytes::kSkinny, true};
  const Candidate skinny_medium{"skinny, 96 KB", bytes::kSkinnyMedium, bytes::kSkinnyMedium, true};
  const Candidate skinny_small{"skinny, 48 KB", bytes::kSkinnySmall, bytes::kSkinnySmall, true};
  const Candidate as_linear{.name = "as linear", .id = 0, .f32 = true};
  plan.skinny_bytes = choose("linear, up to 32 rows", {skinny, skinny_medium, skinny_small, as_linear}, input, report);
  const Candidate narrow{"narrow", 1, bytes::kNarrow, true, true};
  plan.narrow = choose("linear, 9 to 64 rows", {narrow, as_linear}, input, report) == 1;
  const Candidate row_layer{"row", 1, bytes::kRowLayer, true, true};
  const Candidate operators{.name = "its operators", .id = 0, .f32 = true};
  plan.row_layer = choose("decoder layer of one sequence", {row_layer, operators}, input, report) == 1;
  plan.tile_attention_64 =
      A(choose("tile_attention, head dim 64", {attention_wgmma_64, attention_mma_64, attention_plain}, input, report));
  plan.tile_attention_128 = A(
      choose("tile_attention, head dim 128", {attention_mma_128, attention_plain}, input, report));
  plan.prefill_attention_64 = A(choose("paged_attention, prefill, head dim 64",
                                       {prefill_wgmma_64, attention_mma_64, attention_plain}, input, report));
  plan.prefill_attention_128 = A(choose("paged_attention, prefill, head dim 128",
                                        {prefill_wgmma_128, attention_mma_128, attention_plain}, input, report));
  const Candidate ring{"ring", id(A::kWgmma), bytes::kRingDecode, true, true};
  const Candidate split{"mma_split", id(A::kMma), bytes::kMmaDecode, true};
  plan.decode_attention = A(choose("paged_attention, decode", {ring, split, attention_plain}, input, report));
  return plan;
}

}  // namespace tessera::cuda
