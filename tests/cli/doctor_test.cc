// `tessera doctor`: what it says of devices that are there, that are not, and that are only described.
#include <gtest/gtest.h>

#include <fstream>

#include "core/json.h"
#include "tests/support/fixtures.h"
#include "tests/support/program.h"

namespace tessera {
namespace {

using testing::line_count;
using testing::ProgramResult;

ProgramResult doctor(std::vector<std::string> args) {
  args.insert(args.begin(), {TESSERA_BINARY, "doctor"});
  return testing::run_program(args);
}

Json doctor_json(std::vector<std::string> args) {
  args.push_back("--json");
  const ProgramResult result = doctor(args);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  auto json = Json::parse(result.out);
  EXPECT_TRUE(json.ok()) << result.out;
  return std::move(*json);
}

// The line of an operator.
const Json& kernel_of(const Json& report, const std::string& op) {
  for (const Json& line : report.find("kernels")->as_array())
    if (line.find("op")->as_string() == op) return line;
  throw std::runtime_error("no line for " + op);
}

std::string refusal(const Json& line, const std::string& kernel) {
  for (const Json& one : line.find("refused")->as_array())
    if (one.find("kernel")->as_string() == kernel) return one.find("reason")->as_string();
  return "";
}

TEST(Doctor, ADescribedDeviceNeedNotBeThere) {
  for (const char* name : {"h200", "h100", "a100", "rtx4090", "rtx3090", "mxc500"}) {
    const Json report = doctor_json({"--device-limits", name});
    EXPECT_EQ(report.find("used")->find("kind")->as_string(), "cuda") << name;
    EXPECT_GE(report.find("kernels")->as_array().size(), 8u) << name;
    for (const Json& line : report.find("kernels")->as_array()) {
      EXPECT_FALSE(line.find("reason")->as_string().empty()) << name;
      for (const Json& one : line.find("refused")->as_array()) EXPECT_FALSE(one.find("reason")->as_string().empty()) << name;
    }
  }
}

TEST(Doctor, AnImposedLimitChangesTheChoiceAndIsTheReason) {
  EXPECT_EQ(
      kernel_of(doctor_json({"--device-limits", "h200"}), "linear, fused epilogue bf16").find("kernel")->as_string(),
      "wgmma");
  const Json limited = doctor_json({"--device-limits", "h200", "--limit", "shared_memory_per_block=65536"});
  EXPECT_EQ(limited.find("used")->find("shared_memory_optin")->as_int64(), 65536);
  const Json& line = kernel_of(limited, "linear, fused epilogue bf16");
  EXPECT_EQ(line.find("kernel")->as_string(), "mma");
  EXPECT_NE(refusal(line, "wgmma").find("the limit is 65536"), std::string::npos) << refusal(line, "wgmma");
}

TEST(Doctor, AFileDescribesADevice) {
  const std::string path = testing::scratch_dir() + "/card.json";
  std::ofstream(path) << R"({"name": "a card", "memory_bytes": 17179869184, "shared_memory_per_block": 65536, "warp_size": 64})";
  const ProgramResult text = doctor({"--device-limits", path});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.out.find("kernels on a card for bf16"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("plain: needs no more than any device has"), std::string::npos) << text.out;
}

TEST(Doctor, TheDataTypeIsTheModels) {
  const Json report = doctor_json({"InternVL3-1B", "--device-limits", "a100", "--dtype", "f32"});
  EXPECT_EQ(report.find("dtype")->as_string(), "f32");
  EXPECT_EQ(refusal(kernel_of(report, "linear f32"), "mma"), "");  // cuBLASLt comes before it
  EXPECT_EQ(kernel_of(report, "linear f32").find("kernel")->as_string(), "cublaslt");
}

TEST(Doctor, WhatIsMissingIsSaidByName) {
  ::setenv("TESSERA_CUDA_MODULE", "/nonexistent/libtessera_cuda.so", 1);
  const ProgramResult text = doctor({});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_NE(text.out.find("/nonexistent/libtessera_cuda.so is not there; build it with scripts/build_cuda.sh"),
            std::string::npos);
  const ProgramResult asked = doctor({"--device", "cuda"});
  EXPECT_EQ(asked.exit_code, 2);
  EXPECT_EQ(line_count(asked.err), 1u) << asked.err;
  EXPECT_NE(asked.err.find("/nonexistent/libtessera_cuda.so"), std::string::npos);
  ::unsetenv("TESSERA_CUDA_MODULE");
}

TEST(Doctor, RefusesWhatMeansNothing) {
  const auto refused = [](std::vector<std::string> args, const char* part) {
    const ProgramResult result = doctor(std::move(args));
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(line_count(result.err), 1u) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  };
  refused({"--device-limits", "h300"}, "unknown device \"h300\"");
  refused({"--device-limits", "h200", "--device", "cpu"}, "describes a GPU");
  refused({"--device-limits", "h200", "--limit", "colour=3"}, "unknown limit \"colour\"");
  refused({"--device-limits", "h200", "--limit", "warp_size"}, "expected NAME=VALUE");
  refused({"--device-limits", "h200", "--limit", "shared_memory_per_block=1000000"}, "is not in [1, 232448]");
}

TEST(PlanCommand, TakesDescribedDevicesAndLimits) {
  const auto plan = [](std::vector<std::string> args) {
    args.insert(args.begin(), {TESSERA_BINARY, "plan", "InternVL2-8B", "--json"});
    return testing::run_program(args);
  };
  const ProgramResult whole = plan({"--device-limits", "rtx3090"});
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  EXPECT_NE(whole.out.find("NVIDIA GeForce RTX 3090"), std::string::npos);
  const ProgramResult less = plan({"--device-limits", "rtx3090", "--limit", "memory_bytes=12884901888"});
  EXPECT_EQ(less.exit_code, 3) << less.err;
  EXPECT_EQ(plan({"--device-limits", "rtx3090", "--devices", "4x24GiB"}).exit_code, 2);
}

TEST(PlanCommand, TheCpuIsNoDescribedGpu) {
  const ProgramResult run = testing::run_program({TESSERA_BINARY, "run", std::string(TESSERA_SOURCE_DIR) + "/models/demo",
                                                  "--device", "cpu", "--device-limits", "h100", "--prompt", "hi"});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_NE(run.err.find("--device-limits h100 describes a GPU"), std::string::npos) << run.err;
}

}  // namespace
}  // namespace tessera
