#include "backends/cpu/kernel_choice.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "backends/registry.h"

namespace tessera {
namespace {

cpu::CpuFeatures nothing() {
  cpu::CpuFeatures features;
  features.model = "a processor of 2005";
  return features;
}

TEST(KernelChoice, FallsBackToPlainWithoutInstructionSets) {
  auto set = cpu::choose_kernels("auto", nothing());
  ASSERT_TRUE(set.ok()) << set.status().message();
  for (const KernelChoice& choice : set.value().products) {
    EXPECT_EQ(choice.kernel, "plain");
    for (const auto& [kernel, reason] : choice.refused) EXPECT_NE(reason.find("a processor of 2005"), std::string::npos) << kernel;
  }
  EXPECT_EQ(set.value().products[cpu::kElementBF16].refused.size(), 4u);
  EXPECT_EQ(set.value().rest.kernel, "plain");
}

TEST(KernelChoice, RefusesASetThatIsNotThereByName) {
  for (const char* isa : {"avx2", "avx512", "avx512_bf16", "amx_bf16"}) {
    auto set = cpu::choose_kernels(isa, nothing());
    ASSERT_FALSE(set.ok());
    EXPECT_EQ(set.status().code(), StatusCode::kInvalidInput);
    EXPECT_NE(set.status().message().find(std::string("--isa ") + isa), std::string::npos);
  }
  EXPECT_FALSE(cpu::choose_kernels("sse9", nothing()).ok());
}

TEST(KernelChoice, TakesNothingThatTheProcessorLacks) {
  cpu::CpuFeatures features = cpu::cpu_features();
  if (!features.avx2) GTEST_SKIP() << "needs a processor with AVX2";
  features.avx512 = features.avx512_bf16 = features.amx_bf16 = false;
  auto set = cpu::choose_kernels("auto", features);
  ASSERT_TRUE(set.ok());
  EXPECT_EQ(set.value().products[cpu::kElementF32].kernel, "avx2");
  EXPECT_EQ(set.value().products[cpu::kElementBF16].kernel, "avx2");
  EXPECT_EQ(set.value().rest.kernel, "avx2");
}

TEST(Registry, TheCpuIsAlwaysThere) {
  const std::vector<DeviceReport> reports = discover_devices();
  const auto cpu = std::find_if(reports.begin(), reports.end(), [](const DeviceReport& r) { return r.name == "cpu"; });
  ASSERT_NE(cpu, reports.end());
  EXPECT_TRUE(cpu->available);
  EXPECT_GT(cpu->limits.memory_bytes, 0);
  for (const DeviceReport& report : reports) EXPECT_TRUE(report.available || !report.reason.empty()) << report.name;
}

TEST(Registry, SaysWhatIsWrongWithOptions) {
  EXPECT_EQ(open_backend({.device = "tpu"}).status().code(), StatusCode::kInvalidInput);
  EXPECT_EQ(open_backend({.device = "cpu", .threads = -1}).status().code(), StatusCode::kInvalidInput);
  EXPECT_EQ(open_backend({.device = "cpu", .limits = {{"warp_size", 32}}}).status().code(), StatusCode::kInvalidInput);
  auto backend = open_backend({.device = "cpu", .threads = 3, .limits = {{"memory_bytes", 1000000}}});
  ASSERT_TRUE(backend.ok());
  EXPECT_EQ(backend.value()->limits().memory_bytes, 1000000);
  EXPECT_EQ(backend.value()->limits().multiprocessors, 3);
  EXPECT_FALSE(backend.value()->explain(DType::kBF16).empty());
}

TEST(Sizing, CountsWhatPackingAllocates) {
  auto backend = open_backend({.device = "cpu", .threads = 1, .isa = "plain"});
  ASSERT_TRUE(backend.ok());
  CountingAllocator counting;
  for (const LinearSpec& spec : {LinearSpec{.rows = 151674, .cols = 896, .use = WeightUse::kTied},
                                 LinearSpec{.rows = 100, .cols = 33, .dtype = DType::kF32},
                                 LinearSpec{.rows = 40, .cols = 64, .use = WeightUse::kGated, .experts = 5},
                                 LinearSpec{.rows = 99, .cols = 7, .use = WeightUse::kEmbedding}}) {
    const auto weight = backend.value()->make_weight(spec, nullptr, counting, MemoryLine::kLanguageWeights, "w");
    const size_t bytes = backend.value()->sizing().weight_bytes(spec);
    EXPECT_GE(bytes, static_cast<size_t>(spec.rows * spec.cols * spec.experts) * size_of(spec.dtype));
    EXPECT_EQ(weight->bytes(), (bytes + Allocator::kAlignment - 1) / Allocator::kAlignment * Allocator::kAlignment);
  }
}

}  // namespace
}  // namespace tessera
