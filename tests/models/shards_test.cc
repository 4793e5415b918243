// A model cut over ranks: the ranks' sums are the whole model's answer, and what a plan counts is what a load takes.

#include <gtest/gtest.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "models/catalogue.h"
#include "tests/models/runner.h"
#include "tests/models/tiny_models.h"

namespace tessera::testing {
namespace {

/// Ranks as threads of this process that meet at every collective. Host memory only.
class Meeting {
 public:
  explicit Meeting(int ranks) : slots_(static_cast<size_t>(ranks)) {}

  /// Every rank leaves its tensor; the last to come calls `merge` on all of them; then all go on.
  template <class Merge>
  void meet(int rank, const Tensor& in, const Tensor& out, const Merge& merge) {
    std::unique_lock lock(mutex_);
    slots_[static_cast<size_t>(rank)] = {in, out};
    const int round = round_;
    if (++present_ == static_cast<int>(slots_.size())) {
      merge(slots_);
      present_ = 0;
      ++round_;
      changed_.notify_all();
    } else {
      changed_.wait(lock, [&] { return round_ != round; });
    }
  }

  struct Slot {
    Tensor in, out;
  };

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Slot> slots_;
  int present_ = 0;
  int round_ = 0;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(Meeting& meeting, int rank) : meeting_(meeting), rank_(rank) {}

  void all_reduce(Stream&, const Tensor& tensor) override {
    meeting_.meet(rank_, tensor, tensor, [](std::vector<Meeting::Slot>& slots) {
      const Tensor& first = slots[0].in;
      std::vector<float> sum(static_cast<size_t>(first.elements()), 0.0f);
      std::vector<float> part(sum.size());
      for (const auto& slot : slots) {
        convert(slot.in.data, slot.in.dtype, part.data(), DType::kF32, part.size());
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
      }
      for (const auto& slot : slots) convert(sum.data(), DType::kF32, slot.out.data, slot.out.dtype, sum.size());
    });
  }

  void all_gather_columns(Stream&, const Tensor& in, const Tensor& out) override {
    meeting_.meet(rank_, in, out, [](std::vector<Meeting::Slot>& slots) {
      for (const auto& to : slots)
        for (size_t from = 0; from < slots.size(); ++from) {
          const Tensor& part = slots[from].in;
          const size_t bytes = static_cast<size_t>(part.row_elements()) * size_of(part.dtype);
          for (int64_t r = 0; r < part.rows(); ++r)
            std::memcpy(to.out.row<char>(0) + static_cast<size_t>(r * to.out.row_stride) * size_of(part.dtype) + from * bytes,
                        static_cast<char*>(part.data) + static_cast<size_t>(r * part.row_stride) * size_of(part.dtype),
                        bytes);
        }
    });
  }

 private:
  Meeting& meeting_;
  int rank_;
};

std::vector<std::vector<float>> answer(Runner& runner, const ModelConfig& config) {
  runner.encode(random_tiles(1, config.vision.image_size));
  std::vector<int32_t> prompt = {3, 17, 99, 99, 99, 41, 5};
  std::vector<std::vector<float>> steps;
  steps.push_back(runner.step(prompt, /*image_id=*/99, static_cast<int64_t>(prompt.size())));
  for (int32_t id : {8, 23}) steps.push_back(runner.step({id}, -1));
  return steps;
}

std::vector<std::vector<float>> answer_of_ranks(const Checkpoint& checkpoint, int ranks) {
  Meeting meeting(ranks);
  std::vector<std::vector<std::vector<float>>> answers(static_cast<size_t>(ranks));
  std::vector<std::string> errors(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  std::vector<std::unique_ptr<Backend>> backends;
  std::vector<std::unique_ptr<Communicator>> comms;
  std::vector<std::unique_ptr<Runner>> runners;
  for (int r = 0; r < ranks; ++r) {  // loading needs no meeting; a failure shows here, not as a hang
    backends.push_back(open_cpu());
    comms.push_back(std::make_unique<ThreadCommunicator>(meeting, r));
    runners.push_back(std::make_unique<Runner>(
        *backends.back(), checkpoint,
        Runner::Options{.max_tokens = 64, .vision_batch = 1, .shard = {.rank = {r, ranks}}, .comm = comms.back().get()}));
  }
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back(
        [&, r] { answers[static_cast<size_t>(r)] = answer(*runners[static_cast<size_t>(r)], checkpoint.config()); });
  for (std::thread& thread : threads) thread.join();
  for (int r = 1; r < ranks; ++r) EXPECT_EQ(answers[static_cast<size_t>(r)], answers[0]) << "rank " << r;
  return answers[0];
}

struct Split {
  const char* name;
  ModelConfig config;
  int ranks;
};
void PrintTo(const Split& split, std::ostream* out) { *out << split.name; }

std::vector<Split> splits() {
  std::vector<Split> all;
  for (const char* architecture : {"Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
                                   "InternLM2ForCausalLM", "LlamaForCausalLM", "Phi3ForCausalLM"})
    all.push_back({architecture, tiny_config(architecture), 2});
  all.push_back({"more_ranks_than_kv_heads", tiny_config("InternLM2ForCausalLM"), 4});
  all.push_back({"heads_that_do_not_divide", tiny_config("Qwen2ForCausalLM"), 3});
  ModelConfig tied = tiny_config("Qwen2ForCausalLM");
  tied.language.tied = true;
  all.push_back({"tied", tied, 2});
  all.push_back({"tower_6b", tiny_6b_tower("LlamaForCausalLM"), 2});
  return all;
}

class Ranks : public ::testing::TestWithParam<Split> {};

TEST_P(Ranks, GiveTheWholeModelsAnswer) {
  const Checkpoint checkpoint = random_checkpoint(GetParam().config, 11);
  const auto backend = open_cpu();
  Runner whole(*backend, checkpoint, {.max_tokens = 64, .vision_batch = 1});
  const auto expected = answer(whole, checkpoint.config());
  const auto got = answer_of_ranks(checkpoint, GetParam().ranks);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t s = 0; s < got.size(); ++s) {
    ASSERT_EQ(got[s].size(), expected[s].size());
    // The sum over K is cut in another place: float32 rounding of values near 1, some layers deep.
    for (size_t i = 0; i < got[s].size(); ++i) ASSERT_NEAR(got[s][i], expected[s][i], 5e-5) << "step " << s;
  }
}

TEST_P(Ranks, HoldNoMoreThanTheyNeed) {
  const Checkpoint checkpoint = random_checkpoint(GetParam().config, 11);
  const auto backend = open_cpu();
  size_t largest = 0;
  for (int r = 0; r < GetParam().ranks; ++r) {
    CountingAllocator counting, no_more;
    const LoadOptions options{.compute = DType::kF32, .shard = {.rank = {r, GetParam().ranks}}, .progress = {}};
    const auto planned = load_model(checkpoint, *backend, counting, options);
    ASSERT_TRUE(planned.ok()) << planned.status().message();
    largest = std::max(largest, counting.used());
  }
  CountingAllocator whole;
  const auto planned = load_model(checkpoint, *backend, whole, {.compute = DType::kF32});
  ASSERT_TRUE(planned.ok());
  EXPECT_LT(largest, whole.used());
}

INSTANTIATE_TEST_SUITE_P(Models, Ranks, ::testing::ValuesIn(splits()),
                         [](const auto& info) { return std::string(info.param.name); });

std::array<size_t, kMemoryLineCount> lines_of(const Allocator& allocator) {
  std::array<size_t, kMemoryLineCount> lines{};
  for (size_t i = 0; i < lines.size(); ++i) lines[i] = allocator.used(static_cast<MemoryLine>(i));
  return lines;
}

// Counting and loading are one code path: the same bytes, line by line, for every dtype, rank and layer range.
TEST(Counting, GivesTheBytesOfARealLoad) {
  for (const ModelShard& shard : {ModelShard{}, ModelShard{.rank = {1, 2}}, ModelShard{.first_layer = 1, .layer_count = 2},
                                  ModelShard{.first_layer = 0, .layer_count = 1, .vision = false}})
    for (const DType dtype : {DType::kF32, DType::kBF16})
      for (const char* architecture : {"Qwen2ForCausalLM", "Qwen3MoeForCausalLM"}) {
        const Checkpoint checkpoint = random_checkpoint(tiny_config(architecture), 3);
        CountingAllocator counting;  // outlives the backend, whose workspace is counted in it
        const auto backend = open_cpu();
        const LoadOptions options{.compute = dtype, .shard = shard, .progress = {}};
        const ActivationLimits limits{
            .vision_tiles = 2, .step_tokens = 40, .step_sequences = 4, .logit_rows = 4, .max_kv = 128};
        const auto planned = load_model(checkpoint, *backend, counting, options);
        ASSERT_TRUE(planned.ok()) << planned.status().message();
        (*planned)->reserve(limits, counting);
        const auto counted = lines_of(counting);
        const auto loaded = load_model(checkpoint, *backend, backend->allocator(), options);
        ASSERT_TRUE(loaded.ok()) << loaded.status().message();
        (*loaded)->reserve(limits, backend->allocator());
        EXPECT_EQ(counted, lines_of(backend->allocator()));
        EXPECT_GT(counting.used(MemoryLine::kLanguageWeights), 0u);
        EXPECT_EQ(counting.used(MemoryLine::kVisionWeights) > 0, shard.vision);
      }
}

// Layer ranges cut the weights between ranks without loss: their sum is the whole.
TEST(Counting, LayerRangesAddUp) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config("Qwen2ForCausalLM"), 3);
  const auto backend = open_cpu();
  const auto bytes = [&](const ModelShard& shard) {
    CountingAllocator counting;
    const auto planned = load_model(checkpoint, *backend, counting, {.compute = DType::kF32, .shard = shard, .progress = {}});
    EXPECT_TRUE(planned.ok());
    return counting.used();
  };
  EXPECT_EQ(bytes({}), bytes({.first_layer = 0, .layer_count = 1}) +
                           bytes({.first_layer = 1, .layer_count = 2, .vision = false}));
}

TEST(Counting, ProgressReachesTheTotal) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config("Qwen2ForCausalLM"), 3);
  const auto backend = open_cpu();
  size_t last = 0, total = 0;
  const auto loaded = load_model(checkpoint, *backend, backend->allocator(),
                                 {.compute = DType::kF32, .shard = {}, .progress = [&](size_t done, size_t all) {
                                    EXPECT_GE(done, last);
                                    last = done;
                                    total = all;
                                  }});
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, backend->allocator().used());
}

TEST(Counting, AModelThatDoesNotFitIsRefused) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config("Qwen2ForCausalLM"), 3);
  const auto backend = open_cpu();
  backend->allocator().limit(10000);
  const auto loaded = load_model(checkpoint, *backend, backend->allocator(), {.compute = DType::kF32});
  EXPECT_EQ(loaded.status().code(), StatusCode::kDoesNotFit);
  EXPECT_NE(loaded.status().message().find("cannot load random: "), std::string::npos);
  EXPECT_EQ(backend->allocator().used(), 0u);
}

TEST(Counting, EveryReleaseOverRanks) {
  const auto backend = open_cpu();
  for (const Release& release : releases()) {
    if (!release.unsupported.empty()) continue;
    const ModelConfig config = release_config(release.name).value();
    const Checkpoint checkpoint = random_checkpoint(config, 0);
    CountingAllocator counting;
    const auto whole = load_model(checkpoint, *backend, counting, {.compute = DType::kBF16});
    ASSERT_TRUE(whole.ok()) << release.name;
    // Packed bf16 weights and f32 vectors: two bytes a parameter and a little.
    EXPECT_NEAR(static_cast<double>(counting.used()) / (2.0 * static_cast<double>(parameter_count(config))), 1.0, 0.02)
        << release.name;
    CountingAllocator eighth;
    const auto part =
        load_model(checkpoint, *backend, eighth, {.compute = DType::kBF16, .shard = {.rank = {7, 8}}, .progress = {}});
    ASSERT_TRUE(part.ok()) << release.name;
    EXPECT_LT(eighth.used(), counting.used() * 3 / 4) << release.name;
  }
}

}  // namespace
}  // namespace tessera::testing
