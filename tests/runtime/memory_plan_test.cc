#include "runtime/memory_plan.h"

#include <gtest/gtest.h>

#include "backends/registry.h"
#include "models/checkpoint.h"
#include "runtime/engine_memory.h"
#include "tests/support/fixtures.h"

namespace tessera {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// A plain accelerator: weights as they are, a little of everything else.
class PlainSizing final : public Sizing {
 public:
  Precision precision(DType compute) const override { return {compute, compute, DType::kF32, compute}; }
  size_t weight_bytes(const LinearSpec& spec) const override {
    return static_cast<size_t>(spec.rows * spec.cols * spec.experts) * size_of(spec.dtype);
  }
  size_t kernel_workspace_bytes(const WorkspaceShape&) const override { return size_t{64} << 20; }
  size_t sample_workspace_bytes(int64_t rows, int64_t vocab) const override { return static_cast<size_t>(rows * vocab) * 4; }
  size_t staging_bytes() const override { return size_t{64} << 20; }
  size_t graph_bytes() const override { return size_t{64} << 20; }
  size_t driver_bytes() const override { return size_t{512} << 20; }
};

struct Devices {
  Devices(const std::string& kind, int count, int64_t bytes) {
    DeviceLimits limits;
    limits.name = "device of " + format_bytes(bytes);
    limits.kind = kind;
    limits.memory_bytes = bytes;
    for (int i = 0; i < count; ++i) list.push_back({limits, &sizing});
  }
  PlainSizing sizing;
  std::vector<PlanDevice> list;
};

Checkpoint released(const std::string& name) { return std::move(Checkpoint::open(name, {.allow_catalogue = true})).value(); }

TEST(MemoryPlan, WeightsOfInternVl2_8bAsPublished) {
  const Checkpoint checkpoint = released("InternVL2-8B");
  const Devices devices("cpu", 1, 64 * kGiB);
  EngineOptions options;
  options.model = "InternVL2-8B";
  auto plan = plan_memory(checkpoint, devices.list, options);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_TRUE(plan->fits) << plan->reason;
  const DevicePlan& device = plan->devices[0];
  const double weights = static_cast<double>(device.line(MemoryLine::kLanguageWeights) + device.line(MemoryLine::kVisionWeights));
  EXPECT_NEAR(weights / kGiB, 15.04, 0.2);
  EXPECT_EQ(device.kv_block_bytes, 131072 * plan->shape.block_size);
  EXPECT_EQ(device.line(MemoryLine::kKvCache), device.kv_block_bytes * plan->shape.kv_blocks);
}

// 4 x 24 GiB, tp 4, a cache of 0.8 of what is left: what the tower needs has been set aside before.
TEST(MemoryPlan, FourCardsOf24GiB) {
  const Checkpoint checkpoint = released("InternVL2-8B");
  const Devices devices("cuda", 4, 24 * kGiB);
  EngineOptions options;
  options.tp = 4;
  auto plan = plan_memory(checkpoint, devices.list, options);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_TRUE(plan->fits);
  ASSERT_EQ(plan->devices.size(), 4u);
  const DevicePlan& first = plan->devices[0];
  EXPECT_GT(first.line(MemoryLine::kVisionWeights), kGiB / 2);
  EXPECT_GT(first.line(MemoryLine::kVisionWorkspace), 0);
  EXPECT_EQ(plan->devices[1].line(MemoryLine::kVisionWeights), 0);
  const int64_t left = first.capacity_bytes - (first.total_bytes() - first.line(MemoryLine::kKvCache));
  EXPECT_LE(first.line(MemoryLine::kKvCache), left * 8 / 10);
  EXPECT_GT(first.line(MemoryLine::kKvCache), left * 8 / 10 - first.kv_block_bytes - 256);
}

TEST(MemoryPlan, SuggestionsFitWhenPlannedAgain) {
  const Checkpoint checkpoint = released("InternVL2-8B");
  const Devices devices("cuda", 1, 17 * kGiB + kGiB / 2);
  EngineOptions options;
  auto plan = plan_memory(checkpoint, devices.list, options);
  ASSERT_TRUE(plan.ok());
  EXPECT_FALSE(plan->fits);
  ASSERT_FALSE(plan->suggestions.empty());
  for (size_t i = 1; i < plan->suggestions.size(); ++i)
    EXPECT_LE(plan->suggestions[i - 1].cost, plan->suggestions[i].cost);
}

TEST(MemoryPlan, ReasonNamesDeviceAndNumbers) {
  const Checkpoint checkpoint = released("InternVL2-8B");
  const Devices devices("cuda", 1, 8 * kGiB);
  auto plan = plan_memory(checkpoint, devices.list, {});
  ASSERT_TRUE(plan.ok());
  EXPECT_FALSE(plan->fits);
  EXPECT_NE(plan->reason.find("lacks"), std::string::npos) << plan->reason;
  EXPECT_LT(plan->devices[0].free_bytes(), 0);
}

TEST(MemoryPlan, LayerSplitCoversEveryLayerOnce) {
  const Checkpoint checkpoint = released("InternVL3-38B");
  const Devices devices("cuda", 4, 40 * kGiB);
  auto plan = plan_memory(checkpoint, devices.list, {}, {.layer_split = true});
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  int64_t layers = 0;
  for (const DevicePlan& device : plan->devices) {
    EXPECT_EQ(device.shard.first_layer, layers);
    layers += device.layers;
  }
  EXPECT_EQ(layers, checkpoint.config().language.layers);
}

// The first device carries the tower, the last is more than three times as large: both get layers by their room.
TEST(MemoryPlan, LayerSplitGoesByWhatEachDeviceHas) {
  const Checkpoint checkpoint = released("InternVL3-38B");
  Devices devices("cuda", 3, 24 * kGiB);
  devices.list[2].limits.memory_bytes = 80 * kGiB;
  auto plan = plan_memory(checkpoint, devices.list, {}, {.layer_split = true});
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_TRUE(plan->fits) << plan->reason;
  EXPECT_LT(plan->devices[0].layers, plan->devices[1].layers);
  EXPECT_LT(2 * plan->devices[1].layers, plan->devices[2].layers);
  int64_t layers = 0;
  for (const DevicePlan& device : plan->devices) layers += device.layers;
  EXPECT_EQ(layers, checkpoint.config().language.layers);
}

// 14 query heads, 2 KV heads, an MLP of 4864.
TEST(MemoryPlan, KeyValueHeadsAreRepeatedWhereThereAreFewerThanRanks) {
  const Checkpoint checkpoint = released("InternVL2_5-1B");
  const Devices devices("cuda", 14, 24 * kGiB);
  EngineOptions options;
  const auto block_bytes = [&](int tp) {
    options.tp = tp;
    const auto plan = plan_memory(checkpoint, devices.list, options);
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    return std::pair(plan->devices[static_cast<size_t>(tp - 1)].kv_block_bytes, plan->remarks);
  };
  const int64_t whole = block_bytes(1).first;
  EXPECT_EQ(block_bytes(2), std::pair(whole / 2, std::vector<std::string>{}));
  const auto [of14, remarks14] = block_bytes(14);
  EXPECT_EQ(of14, whole / 2);
  ASSERT_EQ(remarks14.size(), 2u);
  EXPECT_EQ(remarks14[0], "2 KV heads for 14 ranks: 7 ranks hold each of them");
  EXPECT_EQ(remarks14[1], "an MLP of 4864 rows can't be cut into 14 equal parts: each rank holds it whole");
}

TEST(MemoryPlan, HeadsThatDoNotDivideAreHeldWhole) {
  const Checkpoint checkpoint = released("InternVL2_5-1B");
  const Devices devices("cuda", 4, 24 * kGiB);
  EngineOptions options;
  const auto alone = plan_memory(checkpoint, devices.list, options);
  options.tp = 4;
  const auto four = plan_memory(checkpoint, devices.list, options);
  ASSERT_TRUE(alone.ok() && four.ok());
  const DevicePlan& last = four->devices[3];
  EXPECT_EQ(last.kv_block_bytes, alone->devices[0].kv_block_bytes);
  EXPECT_LT(last.line(MemoryLine::kLanguageWeights), alone->devices[0].line(MemoryLine::kLanguageWeights) / 2) << "the MLP is cut all the same";
  ASSERT_EQ(four->remarks.size(), 1u);
  EXPECT_NE(four->remarks[0].find("14 query and 2 KV heads"), std::string::npos) << four->remarks[0];
}

// InternViT-6B: 25 heads, a norm over all of them.
TEST(MemoryPlan, TheTowerIsWholeOnTheFirstOrOnEachOrSplit) {
  const Checkpoint checkpoint = released("InternVL2-26B");
  const Devices devices("cuda", 4, 80 * kGiB);
  EngineOptions options;
  options.tp = 4;
  const auto weights = [&](VisionPlacement vision) {
    const auto plan = plan_memory(checkpoint, devices.list, options, {.vision = vision});
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    std::vector<int64_t> bytes;
    for (const DevicePlan& device : plan->devices) bytes.push_back(device.line(MemoryLine::kVisionWeights));
    EXPECT_EQ(plan->devices[1].line(MemoryLine::kVisionWorkspace) > 0, vision != VisionPlacement::kFirst);
    EXPECT_EQ(plan->remarks.empty(), vision != VisionPlacement::kSplit);
    return bytes;
  };
  const auto first = weights(VisionPlacement::kFirst), each = weights(VisionPlacement::kEach), split = weights(VisionPlacement::kSplit);
  EXPECT_GT(first[0], 10 * kGiB);
  EXPECT_EQ(std::vector<int64_t>(first.begin() + 1, first.end()), std::vector<int64_t>(3, 0));
  EXPECT_EQ(each, std::vector<int64_t>(4, first[0]));
  EXPECT_GT(split[3], first[0] / 4) << "attention stays whole";
  EXPECT_LT(split[3], first[0] * 6 / 10) << "the MLPs are cut";
}

TEST(MemoryPlan, KvTokensAreTakenAtTheirWord) {
  const Checkpoint checkpoint = released("InternVL2_5-1B");
  const Devices devices("cuda", 1, 24 * kGiB);
  EngineOptions options;
  options.kv_cache_tokens = 50000;
  auto plan = plan_memory(checkpoint, devices.list, options);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->kv_cache_tokens, 50000);
}

// The plan of a real model and what start-up really allocates are the same number.
TEST(MemoryPlan, StartUpAllocatesWhatWasPlanned) {
  if (!testing::has_fixture("models/qwen2-opengvlab/config.json")) GTEST_SKIP() << "the tiny checkpoint is not in this set";
  auto checkpoint = Checkpoint::open_directory(testing::fixture_path("models/qwen2-opengvlab"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  auto backend = std::move(open_backend({.device = "cpu", .threads = 1})).value();
  EngineOptions options;
  options.session_len = 512;
  const PlanDevice device{backend->limits(), &backend->sizing()};
  auto plan = plan_memory(*checkpoint, std::span(&device, 1), options);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  backend->allocator().limit(static_cast<size_t>(plan->devices[0].allocated_bytes()));
  {
    auto memory = build_engine_memory(*checkpoint, *backend, backend->allocator(), backend->allocator(), plan->shape,
                                      {.compute = plan->compute});
    ASSERT_TRUE(memory.ok()) << memory.status().message();
    for (size_t line = 0; line < kMemoryLineCount; ++line) {
      const auto which = static_cast<MemoryLine>(line);
      if (which == MemoryLine::kDriver || which == MemoryLine::kGraphs || which == MemoryLine::kCommunication) continue;
      // What picture decoders take is no allocator's.
      const int64_t decoders = which == MemoryLine::kStaging ? plan->preparation_bytes : 0;
      EXPECT_EQ(static_cast<int64_t>(backend->allocator().used(which)) + decoders, plan->devices[0].line(which)) << memory_line_name(which);
    }
  }
  // One tile more than planned is refused by the allocator, not by the system.
  EngineShape larger = plan->shape;
  larger.embedding_tiles += 1000;
  EXPECT_THROW((void)build_engine_memory(*checkpoint, *backend, backend->allocator(), backend->allocator(), larger, {.compute = plan->compute}), OutOfMemory);
}

// The plan fitted, then somebody else took memory: the message says who asked for how much and what would fit now.
TEST(MemoryPlan, OutOfMemoryAtStartNamesTheSettingThatFits) {
  const Checkpoint checkpoint = released("InternVL2-8B");
  const Devices devices("cuda", 1, 80 * kGiB);
  const std::string what = "KV cache needs 50000000000 bytes, which the device does not have; 17000000000 are in use";
  const Status some = out_of_memory(what, checkpoint, devices.list[0], {}, 40 * kGiB);
  EXPECT_EQ(some.code(), StatusCode::kDoesNotFit);
  EXPECT_EQ(some.message(), what + "; 40.00 GiB are left for this process: it fits with --gpu-memory-limit 40960MiB");
  const Status little = out_of_memory(what, checkpoint, devices.list[0], {}, 18 * kGiB);
  EXPECT_EQ(little.message().rfind(what + "; with the 18.00 GiB that are left for this process it does not fit: ", 0), 0u) << little.message();
  EXPECT_NE(little.message().find("it fits with --"), std::string::npos) << little.message();
}

}  // namespace
}  // namespace tessera
