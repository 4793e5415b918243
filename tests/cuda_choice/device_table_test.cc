#include "backends/cuda_choice/device_table.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "backends/cuda_choice/sizing.h"
#include "backends/cuda_choice/weight_layout.h"
#include "ops/cuda_module.h"

namespace tessera::cuda {
namespace {

/// A file with this text, removed at the end.
class TextFile {
 public:
  explicit TextFile(const std::string& text) : path_(::testing::TempDir() + "device.json") { std::ofstream(path_) << text; }
  ~TextFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(DeviceTable, BuiltInsAreDescribed) {
  for (const std::string& name : built_in_devices()) {
    const DeviceLimits limits = describe_device(name).value();
    EXPECT_EQ(limits.kind, "cuda") << name;
    EXPECT_GT(limits.memory_bytes, int64_t{20} << 30) << name;
    EXPECT_GE(limits.shared_memory_optin, limits.shared_memory_per_block) << name;
  }
  EXPECT_EQ(describe_device("mxc500").value().shared_memory_optin, 65536);
  EXPECT_EQ(describe_device("rtx3090").value().compute_capability, 86);
}

TEST(DeviceTable, UnknownNameListsTheKnown) {
  const auto result = describe_device("h2000");
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidInput);
  EXPECT_NE(result.status().message().find("rtx3090"), std::string::npos);
}

TEST(DeviceTable, FileGivesFields) {
  const TextFile file(R"({"name": "test card", "memory_bytes": 8589934592, "shared_memory_per_block": 65536,
                          "warp_size": 64, "tensor_cores_bf16": false})");
  const DeviceLimits limits = describe_device(file.path()).value();
  EXPECT_EQ(limits.name, "test card");
  EXPECT_EQ(limits.warp_size, 64);
  EXPECT_EQ(limits.shared_memory_optin, 65536);
}

TEST(DeviceTable, FileErrorsAreNamed) {
  EXPECT_NE(describe_device(TextFile(R"({"memory": 1})").path()).status().message().find("\"memory\""), std::string::npos);
  EXPECT_FALSE(describe_device(TextFile(R"({"memory_bytes": -1})").path()).ok());
  EXPECT_FALSE(describe_device(TextFile(R"([1])").path()).ok());
  EXPECT_FALSE(describe_device(TextFile(R"({"name": "no memory"})").path()).ok());
  EXPECT_FALSE(describe_device("./no-such-file.json").ok());
}

TEST(Limits, CanOnlyBeLowered) {
  DeviceLimits limits = describe_device("h200").value();
  EXPECT_TRUE(impose_limits(limits, {{"shared_memory_per_block", 65536}}).ok());
  EXPECT_EQ(limits.shared_memory_per_block, 65536);
  EXPECT_EQ(limits.shared_memory_optin, 65536);
  EXPECT_FALSE(impose_limits(limits, {{"shared_memory_per_block", 65537}}).ok());
  EXPECT_FALSE(impose_limits(limits, {{"multiprocessors", 0}}).ok());
  EXPECT_FALSE(impose_limits(limits, {{"colour", 3}}).ok());
}

TEST(WeightLayout, RowsArePaddedAndGatesInterleaved) {
  const PackedShape head = packed_shape({.rows = 151674, .cols = 896});
  EXPECT_EQ(head.rows, 151680);
  EXPECT_EQ(head.cols, 896);
  EXPECT_EQ(packed_shape({.rows = 1024, .cols = 588}).cols, 592);
  EXPECT_EQ(packed_shape({.rows = 1024, .cols = 588, .dtype = DType::kF32}).cols, 588);
  EXPECT_EQ(gated_row(0, 100), 0);
  EXPECT_EQ(gated_row(9, 100), 17);
  EXPECT_EQ(gated_row(100, 100), 8);
  EXPECT_EQ(gated_row(109, 100), 25);
}

TEST(Sizing, CountsWhatIsAllocated) {
  const CudaSizing sizing(describe_device("rtx4090").value());
  const LinearSpec spec{.rows = 2 * 4864, .cols = 896, .use = WeightUse::kGated};
  EXPECT_EQ(sizing.weight_bytes(spec), static_cast<size_t>(2 * 4864 * 896 * 2));
  const WorkspaceShape shape{.max_tokens = 2048, .max_sequences = 64, .vision_tokens = 13 * 1025, .max_features = 9728,
                             .vocab = 151674, .heads = 14, .head_dim = 64};
  const WorkspaceParts parts = workspace_parts(shape, describe_device("rtx4090").value());
  EXPECT_GE(sizing.kernel_workspace_bytes(shape), parts.library + parts.product + parts.op);
  EXPECT_GE(parts.op, split_attention_bytes(64, 14, 64));
}

TEST(Module, ItsAbsenceNamesTheFile) {
  ::setenv("TESSERA_CUDA_MODULE", "/nonexistent/libtessera_cuda.so", 1);
  const auto module = open_cuda_module();
  ASSERT_FALSE(module.ok());
  EXPECT_NE(module.status().message().find("/nonexistent/libtessera_cuda.so is not there"), std::string::npos);
}

}  // namespace
}  // namespace tessera::cuda
