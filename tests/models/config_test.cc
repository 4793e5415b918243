// What configurations of both formats become, class defaults included.

#include "models/config.h"

#include <gtest/gtest.h>

#include "tests/models/hf_twin.h"
#include "tests/support/fixtures.h"

namespace tessera::testing {
namespace {

Json json_of(const char* text) { return Json::parse(text).value(); }

constexpr const char* kLeast = R"({
  "model_type": "internvl_chat", "template": "internvl2_5",
  "llm_config": {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 128},
  "vision_config": {"image_size": 448}})";

TEST(Config, ClassDefaultsOfTheOpenGvlabFormat) {
  const Json json = json_of(kLeast);
  const auto c = parse_config({.config = &json}, "d");
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_EQ(c->format, CheckpointFormat::kOpenGvlab);
  EXPECT_EQ(c->pixel_shuffle_version, 1);  // ps_version defaults to v1
  EXPECT_EQ(c->max_dynamic_patch, 6);
  EXPECT_EQ(c->min_dynamic_patch, 1);
  EXPECT_FALSE(c->dynamic_image_size);
  EXPECT_FALSE(c->use_thumbnail);
  EXPECT_EQ(c->select_layer, -1);
  EXPECT_EQ(c->vision.hidden, 3200);  // the class describes the 6B trunk
  EXPECT_EQ(c->vision.layers, 48);
  EXPECT_TRUE(c->vision.qk_norm);
  EXPECT_FALSE(c->vision.qkv_bias);
  EXPECT_EQ(c->vision.norm, NormKind::kRms);
  EXPECT_EQ(c->language.kv_heads, 4);
  EXPECT_EQ(c->language.head_dim, 16);
  EXPECT_EQ(c->language.rope.base, 10000);
  EXPECT_EQ(c->stored, DType::kBF16);
  EXPECT_FALSE(c->system_message.has_value());
}

TEST(Config, ValuesOfTheOpenGvlabFormat) {
  Json json = json_of(kLeast);
  json.set("select_layer", -4);
  json.set("force_image_size", 224);
  json.set("system_message", "Be brief.");
  json.set("torch_dtype", "float16");
  const auto c = parse_config({.config = &json}, "d");
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_EQ(c->vision_layers(), 45);
  EXPECT_EQ(c->vision.image_size, 224);
  EXPECT_EQ(c->vision.table_size, 448);
  EXPECT_EQ(c->tokens_per_tile(), 64);
  EXPECT_EQ(c->system_message, "Be brief.");
  EXPECT_EQ(c->stored, DType::kF16);
}

TEST(Config, FixturesOfBothFormatsAgree) {
  for (const bool newer : {false, true}) {
    const CheckpointFolder folder = CheckpointFolder::read(fixture_path("models/qwen2-opengvlab"));
    const CheckpointFolder twin = hf_twin(folder, newer);
    const ModelConfig a = parse_config({.config = &folder.config}, "a").value();
    const ModelConfig b = parse_config({.config = &twin.config}, "b").value();
    EXPECT_EQ(b.format, CheckpointFormat::kHf);
    EXPECT_EQ(b.template_name, "");
    EXPECT_EQ(b.pixel_shuffle_version, 2);
    EXPECT_EQ(b.max_dynamic_patch, 12);
    EXPECT_TRUE(b.dynamic_image_size && b.use_thumbnail);
    EXPECT_EQ(a.language.architecture, b.language.architecture);
    EXPECT_EQ(a.language.rope.kind, RopeKind::kDynamicNtk);
    EXPECT_EQ(a.language.rope.kind, b.language.rope.kind);
    EXPECT_EQ(a.language.rope.factor, b.language.rope.factor);
    EXPECT_EQ(a.language.rope.base, b.language.rope.base);
    EXPECT_EQ(a.vision.image_size, b.vision.image_size);
    EXPECT_EQ(a.stored, b.stored);
  }
}

TEST(Config, ImageProcessorOfTheHfFormat) {
  const Json config = hf_twin(CheckpointFolder::read(fixture_path("models/qwen2-opengvlab")), true).config;
  const Json file = json_of(R"({"min_patches": 2, "max_patches": 5, "size": {"height": 224, "width": 224}})");
  const Json nested = json_of(R"({"image_processor": {"min_patches": 1, "max_patches": 9}})");
  const ModelConfig one = parse_config({.config = &config, .preprocessor = &file}, "d").value();
  EXPECT_EQ(one.min_dynamic_patch, 2);
  EXPECT_EQ(one.max_dynamic_patch, 5);
  const ModelConfig two = parse_config({.config = &config, .preprocessor = &file, .processor = &nested}, "d").value();
  EXPECT_EQ(two.min_dynamic_patch, 1);
  EXPECT_EQ(two.max_dynamic_patch, 9);  // the newest place wins
}

TEST(Config, LongRopeOfPhi3) {
  Json json = json_of(kLeast);
  for (auto& [key, section] : json.as_object())
    if (key == "llm_config") {
      section.set("architectures", Json(Json::Array{Json("Phi3ForCausalLM")}));
      section.set("head_dim", 4);
      section.set("max_position_embeddings", 131072);
      section.set("original_max_position_embeddings", 4096);
      section.set("rope_scaling", json_of(R"({"type": "su", "short_factor": [1, 1.5], "long_factor": [2, 30]})"));
    }
  const auto c = parse_config({.config = &json}, "d");
  ASSERT_TRUE(c.ok()) << c.status().message();
  const RopeParams& rope = c->language.rope;
  EXPECT_EQ(rope.kind, RopeKind::kLongRope);
  EXPECT_EQ(rope.original_max_position, 4096);
  EXPECT_EQ(rope.long_factors, (std::vector<float>{2, 30}));
  EXPECT_NEAR(rope.attention_scale, 1.19024, 1e-5);  // sqrt(1 + ln 32 / ln 4096)
}

TEST(Config, EosIdsOneOrSeveral) {
  const Json json = json_of(kLeast);
  const Json one = json_of(R"({"eos_token_id": 7})"), several = json_of(R"({"eos_token_id": [7, 8]})"),
             none = json_of(R"({"eos_token_id": null, "do_sample": true})");
  EXPECT_EQ(parse_config({.config = &json, .generation = &one}, "d")->eos_ids, (std::vector<int32_t>{7}));
  EXPECT_EQ(parse_config({.config = &json, .generation = &several}, "d")->eos_ids, (std::vector<int32_t>{7, 8}));
  EXPECT_TRUE(parse_config({.config = &json, .generation = &none}, "d")->eos_ids.empty());
}

}  // namespace
}  // namespace tessera::testing
