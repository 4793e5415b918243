#include "backends/cuda_choice/kernel_choice.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "backends/cuda_choice/device_table.h"

namespace tessera::cuda {
namespace {

DeviceLimits device(const std::string& name) { return describe_device(name).value(); }

const KernelChoice& line(const std::vector<KernelChoice>& report, const std::string& op) {
  auto found = std::find_if(report.begin(), report.end(), [&](const KernelChoice& c) { return c.op == op; });
  if (found == report.end()) throw std::runtime_error("no line " + op);
  return *found;
}

std::string refusal(const KernelChoice& choice, const std::string& candidate) {
  for (const auto& entry : choice.refused)
    if (entry.first == candidate) return entry.second;
  return "";
}

TEST(KernelChoice, EveryDescribedDeviceHasAKernelForEverything) {
  for (const std::string& name : built_in_devices())
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      std::vector<KernelChoice> report;
      choose_kernels({.limits = device(name), .weights = dtype}, &report);
      EXPECT_EQ(report.size(), 10u);
      for (const KernelChoice& choice : report) {
        EXPECT_FALSE(choice.kernel.empty()) << name << " " << choice.op;
        EXPECT_FALSE(choice.reason.empty()) << name << " " << choice.op;
      }
    }
}

TEST(KernelChoice, LibraryServesProductsUnlessALimitIsImposed) {
  ChoiceInput input{.limits = device("h200")};
  EXPECT_EQ(choose_kernels(input).linear, LinearKernel::kCublasLt);
  input.imposed = true;
  std::vector<KernelChoice> report;
  const KernelPlan plan = choose_kernels(input, &report);
  EXPECT_EQ(plan.linear, LinearKernel::kWgmma);
  EXPECT_EQ(plan.linear_fused, LinearKernel::kWgmma);
  EXPECT_NE(refusal(line(report, "linear bf16"), "cublaslt").find("limit is imposed"), std::string::npos);
}

TEST(KernelChoice, AMissingLibraryIsNamed) {
  std::vector<KernelChoice> report;
  choose_kernels({.limits = device("a100"), .cublaslt = false}, &report);
  EXPECT_EQ(line(report, "linear bf16").kernel, "mma");
  EXPECT_EQ(refusal(line(report, "linear bf16"), "cublaslt"), "libcublasLt.so.13 was not found");
}

TEST(KernelChoice, FusedEpiloguesAndTilesTakeWgmmaWhereItIs) {
  EXPECT_EQ(choose_kernels({.limits = device("h100")}).linear_fused, LinearKernel::kWgmma);
  EXPECT_EQ(choose_kernels({.limits = device("h100")}).tile_attention_64, AttentionKernel::kWgmma);
  EXPECT_EQ(choose_kernels({.limits = device("h200")}).prefill_attention_64, AttentionKernel::kWgmma);
  EXPECT_EQ(choose_kernels({.limits = device("h200")}).prefill_attention_128, AttentionKernel::kWgmma);
  EXPECT_EQ(choose_kernels({.limits = device("h200")}).decode_attention, AttentionKernel::kWgmma);
  EXPECT_EQ(choose_kernels({.limits = device("a100")}).decode_attention, AttentionKernel::kMma);
  EXPECT_EQ(choose_kernels({.limits = device("a100")}).linear_fused, LinearKernel::kCublasLt);
  EXPECT_EQ(choose_kernels({.limits = device("a100")}).prefill_attention_128, AttentionKernel::kMma);
  std::vector<KernelChoice> report;
  choose_kernels({.limits = device("rtx4090")}, &report);
  EXPECT_EQ(refusal(line(report, "tile_attention, head dim 64 bf16"), "wgmma"), "needs wgmma (compute capability 9.0)");
}

TEST(KernelChoice, WithFortyEightKilobytesTensorCoresStillServe) {
  DeviceLimits limits = device("h200");
  ASSERT_TRUE(impose_limits(limits, {{"shared_memory_per_block", 49152}}).ok());
  const KernelPlan plan = choose_kernels({.limits = limits, .imposed = true});
  EXPECT_EQ(plan.linear, LinearKernel::kMma);
  EXPECT_EQ(plan.tile_attention_64, AttentionKernel::kMma);
  EXPECT_EQ(plan.prefill_attention_64, AttentionKernel::kMma);
  EXPECT_EQ(plan.prefill_attention_128, AttentionKernel::kMma);
  EXPECT_EQ(plan.decode_attention, AttentionKernel::kMma);
}

TEST(KernelChoice, PrefillByWgmmaSaysWhatItNeeds) {
  DeviceLimits limits = device("h200");
  ASSERT_TRUE(impose_limits(limits, {{"shared_memory_per_block", 190000}}).ok());
  std::vector<KernelChoice> report;
  const KernelPlan plan = choose_kernels({.limits = limits, .imposed = true}, &report);
  EXPECT_EQ(plan.prefill_attention_64, AttentionKernel::kWgmma);
  EXPECT_EQ(plan.prefill_attention_128, AttentionKernel::kMma);
  EXPECT_EQ(refusal(line(report, "paged_attention, prefill, head dim 128 bf16"), "wgmma"),
            "needs " + std::to_string(shared_bytes::kWgmmaPrefill128) + " bytes of shared memory a block; the limit is 190000");
}

TEST(KernelChoice, AKernelThatDoesNotFitGivesWayToTheNext) {
  DeviceLimits limits = device("h200");
  ASSERT_TRUE(impose_limits(limits, {{"shared_memory_per_block", 32000}}).ok());
  std::vector<KernelChoice> report;
  const KernelPlan plan = choose_kernels({.limits = limits, .imposed = true}, &report);
  EXPECT_EQ(plan.tile_attention_64, AttentionKernel::kMma);  // 24 KB
  EXPECT_EQ(plan.tile_attention_128, AttentionKernel::kPlain);
  EXPECT_EQ(refusal(line(report, "tile_attention, head dim 128 bf16"), "mma"),
            "needs 49152 bytes of shared memory a block; the limit is 32000");
}

TEST(KernelChoice, WhatIsUnknownOfADeviceIsNotAssumed) {
  std::vector<KernelChoice> report;
  const KernelPlan plan = choose_kernels({.limits = device("mxc500"), .cublaslt = false}, &report);
  EXPECT_EQ(plan.linear, LinearKernel::kPlain);
  EXPECT_EQ(plan.decode_attention, AttentionKernel::kPlain);
  EXPECT_EQ(plan.skinny_bytes, 0);
  DeviceLimits wide = device("h200");
  wide.warp_size = 64;
  choose_kernels({.limits = wide, .cublaslt = false}, &report);
  EXPECT_EQ(refusal(report.back(), "mma_split"), "needs warps of 32 threads; the device has 64");
}

TEST(KernelChoice, SinglePrecisionRunsOnTheLibraryOrPlain) {
  const KernelPlan plan = choose_kernels({.limits = device("h200"), .weights = DType::kF32});
  EXPECT_EQ(plan.linear, LinearKernel::kCublasLt);
  EXPECT_EQ(plan.tile_attention_64, AttentionKernel::kPlain);
  EXPECT_EQ(plan.skinny_bytes, 0);
}

}  // namespace
}  // namespace tessera::cuda
