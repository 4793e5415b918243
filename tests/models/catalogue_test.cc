#include "models/catalogue.h"

#include <gtest/gtest.h>

#include "models/checkpoint.h"
#include "models/weight_loader.h"
#include "tests/models/runner.h"
#include "tests/models/tiny_models.h"

namespace tessera::testing {
namespace {

TEST(Catalogue, TotalsAreThePublishedOnes) {
  for (const Release& release : releases()) {
    if (!release.unsupported.empty()) continue;
    const auto config = release_config(release.name);
    ASSERT_TRUE(config.ok()) << config.status().message();
    EXPECT_NEAR(static_cast<double>(parameter_count(*config)) / 1e9, release.total_billions, 0.0005001) << release.name;
    EXPECT_EQ(config->tokens_per_tile(), 256) << release.name;
  }
}

TEST(Catalogue, TowersHaveTheirPublishedSizes) {
  const auto tower = [](const char* name) {
    const ModelConfig c = release_config(name).value();
    ModelConfig no_tower = c;
    no_tower.vision.layers = 0;
    const int64_t layers = parameter_count(c) - parameter_count(no_tower);
    const VisionConfig& v = c.vision;
    return layers + v.hidden * (3 * 14 * 14 + 1) + v.hidden + 1025 * v.hidden;
  };
  EXPECT_EQ(tower("InternVL3-1B"), 304012288);
  EXPECT_EQ(tower("InternVL3-38B"), 5536496000);
}

TEST(Catalogue, NamesInTheirSpellings) {
  EXPECT_EQ(find_release("InternVL3-8B")->name, "InternVL3-8B");
  EXPECT_EQ(find_release("OpenGVLab/internvl3-8b")->name, "InternVL3-8B");
  EXPECT_EQ(find_release("OpenGVLab/InternVL3-8B-hf")->name, "InternVL3-8B");
  EXPECT_EQ(find_release("InternVL3_5-241B-A28B-HF")->name, "InternVL3_5-241B-A28B");
  EXPECT_EQ(find_release("InternVL2_5-38B-MPO")->name, "InternVL2_5-38B");
  EXPECT_EQ(find_release("InternVL3_5-8B-Instruct")->name, "InternVL3_5-8B");
  EXPECT_EQ(find_release("InternVL9-8B"), nullptr);
  EXPECT_EQ(nearest_release("IntrenVL3-8B"), "InternVL3-8B");
  EXPECT_EQ(nearest_release("completely different"), "");
}

TEST(Catalogue, RefusesWhatItCannotRun) {
  EXPECT_EQ(release_config("InternVL3-9").status().message(),
            "no released model is named InternVL3-9; did you mean InternVL3-9B?");
  EXPECT_NE(release_config("InternVL3_5-GPT-OSS-20B-A4B-Preview").status().message().find("GPT-OSS"), std::string::npos);
  EXPECT_NE(release_config("OpenGVLab/InternVL3_5-8B-Flash").status().message().find("without -Flash"),
            std::string::npos);
}

TEST(Catalogue, BareNamesOnlyWhereTheyAreAllowed) {
  EXPECT_EQ(Checkpoint::open("InternVL3-8B").status().message(),
            "model InternVL3-8B is no directory; the bare name of a release is enough for plan, doctor and bench only; "
            "give a checkpoint directory, or demo");
  const auto opened = Checkpoint::open("internvl3-8b", {.allow_catalogue = true});
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  EXPECT_EQ(opened->name(), "InternVL3-8B");
  EXPECT_EQ(opened->directory(), "");
  EXPECT_NE(Checkpoint::open("InternVL3-8", {.allow_catalogue = true}).status().message().find("did you mean InternVL3-8B?"),
            std::string::npos);
}

// The closed formula against what a load really asks for.
TEST(Catalogue, ParameterCountIsWhatIsLoaded) {
  for (const char* architecture : {"Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
                                   "InternLM2ForCausalLM", "LlamaForCausalLM", "Phi3ForCausalLM"})
    for (const bool big_tower : {false, true}) {
      const ModelConfig config = big_tower ? tiny_6b_tower(architecture) : tiny_config(architecture);
      const Checkpoint checkpoint = random_checkpoint(config, 0);
      class Counter final : public TensorStore {
       public:
        explicit Counter(const TensorStore& store) : store_(store) {}
        bool contains(const std::string& name) const override { return store_.contains(name); }
        Result<std::shared_ptr<const TensorReader>> open(const std::string& name,
                                                         std::span<const int64_t> shape) const override {
          int64_t count = 1;
          for (int64_t d : shape) count *= d;
          elements_[name] = count;
          return store_.open(name, shape);
        }
        int64_t total() const {
          int64_t sum = 0;
          for (const auto& [name, count] : elements_) sum += count;
          return sum;
        }

       private:
        const TensorStore& store_;
        mutable std::map<std::string, int64_t> elements_;
      };
      const auto counter = std::make_shared<Counter>(checkpoint.tensors());
      const auto backend = open_cpu();
      CountingAllocator counting;
      const auto loaded = load_model(Checkpoint("counted", "", config, counter), *backend, counting, {});
      ASSERT_TRUE(loaded.ok()) << loaded.status().message();
      EXPECT_EQ(counter->total(), parameter_count(config)) << architecture;
    }
}

TEST(RandomStore, SameSeedSameNumbersWhateverTheRange) {
  const RandomStore store(5, ""), same(5, ""), other(6, "");
  const std::vector<int64_t> shape = {40, 50};
  const std::string name = "language_model.model.layers.0.self_attn.q_proj.weight";
  const auto read = [&](const RandomStore& from, int64_t begin, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    from.open(name, shape).value()->read(begin, count, DType::kF32, values.data());
    return values;
  };
  const std::vector<float> whole = read(store, 0, 2000);
  EXPECT_EQ(read(same, 0, 2000), whole);
  EXPECT_NE(read(other, 0, 2000), whole);
  for (const auto& [begin, count] : {std::pair{3, 1}, std::pair{5, 30}, std::pair{8, 16}, std::pair{1999, 1}})
    EXPECT_EQ(read(store, begin, count), std::vector<float>(whole.begin() + begin, whole.begin() + begin + count));
  double mean = 0, squares = 0;
  for (float v : whole) {
    EXPECT_EQ(to_float(to_bf16(v)), v);  // exact in bf16
    mean += v / 2000;
    squares += v * v / 2000;
  }
  EXPECT_NEAR(mean, 0, 0.01);
  EXPECT_NEAR(squares * 50, 1, 0.1);  // variance 1 / inputs
}

}  // namespace
}  // namespace tessera::testing
