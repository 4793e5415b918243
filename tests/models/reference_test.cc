// Every architecture and variation against an independent double-precision reading, on small random models.

#include <gtest/gtest.h>

#include "tests/models/reference_model.h"
#include "tests/models/runner.h"
#include "tests/models/tiny_models.h"

namespace tessera::testing {
namespace {

struct Variation {
  const char* name;
  ModelConfig config;
  int64_t chunk = 1 << 20;  ///< prefill chunk
};

ModelConfig changed(ModelConfig config, const std::function<void(ModelConfig&)>& change) {
  change(config);
  return config;
}

std::vector<Variation> variations() {
  std::vector<Variation> all;
  all.push_back({"qwen2", tiny_config("Qwen2ForCausalLM")});
  all.push_back({"qwen2_in_chunks", tiny_config("Qwen2ForCausalLM"), 5});
  all.push_back({"qwen3", tiny_config("Qwen3ForCausalLM")});
  all.push_back({"qwen3_moe", tiny_config("Qwen3MoeForCausalLM")});
  all.push_back({"qwen3_moe_weights_as_they_are",
                 changed(tiny_config("Qwen3MoeForCausalLM"), [](auto& c) { c.language.normalise_experts = false; })});
  all.push_back({"internlm2", tiny_config("InternLM2ForCausalLM")});
  all.push_back({"internlm3_like", changed(tiny_config("InternLM2ForCausalLM"), [](auto& c) {
                   c.language.heads = 8;
                   c.language.kv_heads = 1;
                 })});
  all.push_back({"llama", tiny_config("LlamaForCausalLM")});
  all.push_back({"phi3", changed(tiny_config("Phi3ForCausalLM"), [](auto& c) { c.language.kv_heads = 4; })});
  all.push_back({"tied", changed(tiny_config("Qwen2ForCausalLM"), [](auto& c) { c.language.tied = true; })});
  all.push_back({"tower_6b", tiny_6b_tower("Qwen2ForCausalLM")});
  all.push_back({"shuffle_v1", changed(tiny_config("Qwen2ForCausalLM"), [](auto& c) { c.pixel_shuffle_version = 1; })});
  all.push_back({"select_layer_minus_2", changed(tiny_config("Qwen2ForCausalLM"), [](auto& c) { c.select_layer = -2; })});
  all.push_back({"select_layer_1", changed(tiny_config("Qwen2ForCausalLM"), [](auto& c) { c.select_layer = 1; })});
  all.push_back({"select_layer_0", changed(tiny_config("Qwen2ForCausalLM"), [](auto& c) { c.select_layer = 0; })});
  all.push_back({"positions_resampled_up", changed(tiny_config("Qwen2ForCausalLM"), [](auto& c) {
                   c.vision.image_size = 84;
                 })});
  all.push_back({"positions_resampled_down", changed(tiny_config("Qwen2ForCausalLM"), [](auto& c) {
                   c.vision.table_size = 98;
                 })});
  const auto dynamic = [](auto& c) {
    c.language.rope.kind = RopeKind::kDynamicNtk;
    c.language.rope.factor = 2;
    c.language.rope.max_position = 8;  // the prompt is longer
  };
  all.push_back({"dynamic_ntk", changed(tiny_config("InternLM2ForCausalLM"), dynamic)});
  all.push_back({"dynamic_ntk_in_chunks", changed(tiny_config("InternLM2ForCausalLM"), dynamic), 6});
  const auto long_rope = [](int64_t original) {
    return [original](auto& c) {
      RopeParams& rope = c.language.rope;
      rope.kind = RopeKind::kLongRope;
      rope.original_max_position = original;
      rope.attention_scale = 1.19f;
      for (int i = 0; i < 8; ++i) {
        rope.short_factors.push_back(1.0f + 0.05f * static_cast<float>(i));
        rope.long_factors.push_back(1.3f + 0.7f * static_cast<float>(i));
      }
    };
  };
  all.push_back({"su_short", changed(tiny_config("Phi3ForCausalLM"), long_rope(64))});
  all.push_back({"su_switches_while_decoding", changed(tiny_config("Phi3ForCausalLM"), long_rope(19))});
  all.push_back({"su_long", changed(tiny_config("Phi3ForCausalLM"), long_rope(8)), 4});
  return all;
}

void PrintTo(const Variation& variation, std::ostream* out) { *out << variation.name; }

class AgainstReference : public ::testing::TestWithParam<Variation> {};

// float32 against double over three layers of width 48: rounding is about 1e-6 of values near 1, and softmax and
// norms multiply it by little.
constexpr double kTolerance = 5e-5;

TEST_P(AgainstReference, LogitsOfPromptAndDecode) {
  const Checkpoint checkpoint = random_checkpoint(GetParam().config, 7);
  const ModelConfig& config = checkpoint.config();
  const auto backend = open_cpu();
  Runner runner(*backend, checkpoint, {.max_tokens = 64, .vision_batch = 1});
  const ReferenceModel reference(checkpoint);

  const int64_t side = config.vision.image_size;
  const std::vector<uint8_t> tiles = random_tiles(2, side);
  runner.encode(tiles);
  ReferenceModel::Matrix images;
  for (int64_t t = 0; t < 2; ++t)
    for (auto& row : reference.encode(tiles.data() + t * 3 * side * side)) images.push_back(row);
  const HostTensor rows = runner.image_rows(static_cast<int64_t>(images.size()));
  for (int64_t r = 0; r < rows.rows(); ++r)
    for (int64_t i = 0; i < rows.cols(); ++i)
      ASSERT_NEAR(rows.row(r)[i], images[static_cast<size_t>(r)][static_cast<size_t>(i)], kTolerance) << r << ", " << i;

  constexpr int32_t kImage = 99;
  std::vector<int32_t> prompt = {3, 17};
  prompt.insert(prompt.end(), static_cast<size_t>(config.tokens_per_tile()), kImage);
  for (int32_t id : {41, 5, 77, 8, 23, 60, 11, 2}) prompt.push_back(id);
  prompt.insert(prompt.end(), 2, kImage);  // the second tile's first rows
  prompt.push_back(64);
  const auto length = static_cast<int64_t>(prompt.size());

  const auto answer = runner.greedy(prompt, kImage, {}, 5, GetParam().chunk);
  std::vector<int32_t> ids = prompt;
  std::vector<int64_t> lengths(prompt.size(), length);
  for (const std::vector<float>& logits : answer.logits) {
    const std::vector<double> expected = reference.logits(ids, lengths, kImage, images);
    ASSERT_EQ(logits.size(), expected.size());
    for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], kTolerance) << "after " << ids.size();
    ids.push_back(answer.ids[ids.size() - prompt.size()]);
    lengths.push_back(static_cast<int64_t>(ids.size()));
  }
}

INSTANTIATE_TEST_SUITE_P(Variations, AgainstReference, ::testing::ValuesIn(variations()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tessera::testing
