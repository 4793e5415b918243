#include <gtest/gtest.h>

#include "backends/registry.h"
#include "cli/device_spec.h"
#include "cli/plan_report.h"
#include "models/checkpoint.h"

namespace tessera::cli {
namespace {

TEST(DeviceSpec, ReadsSizesCountsAndLists) {
  auto four = parse_devices("4x24GiB");
  ASSERT_TRUE(four.ok());
  ASSERT_EQ(four->size(), 4u);
  EXPECT_EQ((*four)[3].memory_bytes, int64_t{24} << 30);
  EXPECT_EQ((*four)[0].kind, "cuda");
  auto mixed = parse_devices("2x24GiB,1x80GiB");
  ASSERT_TRUE(mixed.ok());
  EXPECT_EQ((*mixed)[2].memory_bytes, int64_t{80} << 30);
  auto cpu = parse_devices("cpu:512MiB");
  ASSERT_TRUE(cpu.ok());
  EXPECT_EQ((*cpu)[0].kind, "cpu");
  EXPECT_EQ((*cpu)[0].memory_bytes, int64_t{512} << 20);
  auto named = parse_devices("4xrtx3090");
  ASSERT_TRUE(named.ok()) << named.status().message();
  ASSERT_EQ(named->size(), 4u);
  EXPECT_EQ((*named)[0].memory_bytes, int64_t{24} << 30);
  EXPECT_TRUE(parse_devices("auto").ok());
}

TEST(DeviceSpec, RefusesWhatItCannotMean) {
  for (const char* spec : {"", "4x", "x24GiB", "0x24GiB", "100x24GiB", "4x-1GiB", "cpu:", "cpu:0GiB", "4x24", "nan", "1x24GiB,",
                           "1x24GiB,cpu:4GiB", "4xnosuchcard", "1e9x24GiB", "1x1e300GiB"}) {
    auto devices = parse_devices(spec);
    ASSERT_FALSE(devices.ok()) << spec;
    EXPECT_EQ(devices.status().code(), StatusCode::kInvalidInput);
    EXPECT_NE(devices.status().message().find("--devices"), std::string::npos);
  }
}

Result<MemoryPlan> plan_on_cpu(int64_t bytes) {
  auto checkpoint = Checkpoint::open("InternVL2_5-1B", {.allow_catalogue = true});
  DeviceLimits limits;
  limits.name = limits.kind = "cpu";
  limits.memory_bytes = limits.memory_free_bytes = bytes;
  TESSERA_ASSIGN_OR_RETURN(auto sizing, open_sizing(limits));
  const PlanDevice device{limits, sizing.get()};
  EngineOptions options;
  return plan_memory(*checkpoint, std::span(&device, 1), options);
}

TEST(PlanReport, JsonHasTheContractsMembers) {
  auto plan = plan_on_cpu(int64_t{16} << 30);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  const Json json = plan_json(*plan);
  EXPECT_TRUE(json.find("fits")->as_bool());
  const Json& device = json.find("devices")->as_array().at(0);
  int64_t sum = 0;
  std::vector<std::string> names;
  for (const Json& line : device.find("lines")->as_array()) {
    names.push_back(line.find("name")->as_string());
    sum += line.find("bytes")->as_int64();
  }
  EXPECT_EQ(names, (std::vector<std::string>{"language_weights", "vision_weights", "kv_cache", "vision_workspace", "activations",
                                             "logits", "embedding_cache", "staging", "communication", "graphs", "driver"}));
  EXPECT_EQ(device.find("total_bytes")->as_int64(), sum);
  EXPECT_EQ(device.find("capacity_bytes")->as_int64() - sum, device.find("free_bytes")->as_int64());
  EXPECT_GT(json.find("kv_cache_tokens")->as_int64(), 0);
  EXPECT_GT(json.find("max_prompt_tokens")->as_int64(), 0);
  EXPECT_GT(json.find("max_tiles_per_request")->as_int64(), 0);
  EXPECT_TRUE(json.find("suggestions")->as_array().empty());
}

TEST(PlanReport, DoesNotFitWithSuggestions) {
  auto plan = plan_on_cpu(int64_t{2300} << 20);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_FALSE(plan->fits);
  EXPECT_FALSE(plan_json(*plan).find("suggestions")->as_array().empty());
  EXPECT_NE(plan_table(*plan, "InternVL2_5-1B", 0.8).find("It does not fit"), std::string::npos);
}

}  // namespace
}  // namespace tessera::cli
