// The same numbers in every layout that checkpoints come in give the same logits, bit for bit: names of both formats
// and generations, one file or shards, fused or split, stored in another float type that holds them exactly.

#include <gtest/gtest.h>

#include "tests/models/golden_cases.h"
#include "tests/models/hf_twin.h"
#include "tests/models/runner.h"
#include "tests/models/tiny_models.h"

namespace tessera::testing {
namespace {

std::vector<float> logits_of(const std::string& directory) {
  auto opened = Checkpoint::open_directory(directory);
  if (!opened.ok()) throw std::runtime_error(opened.status().message());
  const auto backend = open_cpu();
  Runner runner(*backend, *opened, {.max_tokens = 128, .vision_batch = 1});
  runner.encode(random_tiles(1, opened->config().vision.image_size));
  std::vector<int32_t> prompt = {5, 9, 700, 33};
  prompt.insert(prompt.end(), 20, 1000);
  prompt.push_back(17);
  return runner.step(prompt, /*image_id=*/1000, static_cast<int64_t>(prompt.size()));
}

constexpr const char* kQwen = "models/qwen2-opengvlab";           // bf16, tied, two shards
constexpr const char* kLlamaModel = "models/llama3-6b-vit-opengvlab";  // f32, untied

TEST(Layouts, OlderHfNames) {
  const CheckpointFolder folder = CheckpointFolder::read(fixture_path(kQwen));
  EXPECT_EQ(logits_of(hf_twin(folder, /*newer=*/false).write(DType::kBF16)), logits_of(fixture_path(kQwen)));
}

TEST(Layouts, NewerHfNamesAndSpellings) {
  const CheckpointFolder qwen = CheckpointFolder::read(fixture_path(kQwen));
  EXPECT_EQ(logits_of(hf_twin(qwen, /*newer=*/true).write(DType::kBF16, 3)), logits_of(fixture_path(kQwen)));
  const CheckpointFolder llama = CheckpointFolder::read(fixture_path(kLlamaModel));
  EXPECT_EQ(logits_of(hf_twin(llama, /*newer=*/true).write(DType::kF32)), logits_of(fixture_path(kLlamaModel)));
}

TEST(Layouts, OneFileOrShards) {
  const CheckpointFolder folder = CheckpointFolder::read(fixture_path(kQwen));
  EXPECT_EQ(logits_of(folder.write(DType::kBF16, 1)), logits_of(fixture_path(kQwen)));
  EXPECT_EQ(logits_of(folder.write(DType::kBF16, 7)), logits_of(fixture_path(kQwen)));
}

TEST(Layouts, StoredAsF32) {
  const CheckpointFolder folder = CheckpointFolder::read(fixture_path(kQwen));
  EXPECT_EQ(logits_of(folder.write(DType::kF32)), logits_of(fixture_path(kQwen)));
}

TEST(Layouts, StoredAsF16) {  // bf16 values of this size lose nothing but subnormals in f16
  const CheckpointFolder folder = CheckpointFolder::read(fixture_path(kQwen));
  const std::vector<float> f16 = logits_of(folder.write(DType::kF16));
  const std::vector<float> expected = logits_of(fixture_path(kQwen));
  for (size_t i = 0; i < f16.size(); ++i) ASSERT_NEAR(f16[i], expected[i], 1e-3);
}

// A head's tensor wins over a flag that says tied.
TEST(Layouts, HeadTensorWinsOverTheFlag) {
  CheckpointFolder folder = CheckpointFolder::read(fixture_path(kLlamaModel));
  folder.config.set("tie_word_embeddings", true);
  folder.section("llm_config").set("tie_word_embeddings", true);
  EXPECT_EQ(logits_of(folder.write(DType::kF32)), logits_of(fixture_path(kLlamaModel)));
}

TEST(Layouts, HeadEqualToTheEmbeddingIsTheTiedModel) {
  CheckpointFolder folder = CheckpointFolder::read(fixture_path(kQwen));
  CheckpointFolder::Item head = folder.at("language_model.model.embed_tokens.weight");
  head.name = "language_model.lm_head.weight";
  folder.items.push_back(std::move(head));
  EXPECT_EQ(logits_of(folder.write(DType::kBF16)), logits_of(fixture_path(kQwen)));
}

// Llama's weights under InternLM2's names, q, k and v fused by groups.
TEST(Layouts, InternLm2FusedGroups) {
  CheckpointFolder folder = CheckpointFolder::read(fixture_path(kLlamaModel));
  Json& llm = folder.section("llm_config");
  const int64_t heads = llm.find("num_attention_heads")->as_int64();
  const int64_t kv_heads = llm.find("num_key_value_heads")->as_int64();
  const int64_t d = llm.find("hidden_size")->as_int64() / heads, group = heads / kv_heads;
  llm.set("architectures", Json(Json::Array{Json("InternLM2ForCausalLM")}));
  for (int layer = 0; layer < 2; ++layer) {
    const std::string p = "language_model.model.layers." + std::to_string(layer) + ".";
    const auto q = folder.take(p + "self_attn.q_proj.weight");
    const auto k = folder.take(p + "self_attn.k_proj.weight");
    const auto v = folder.take(p + "self_attn.v_proj.weight");
    std::vector<CheckpointFolder::Item> parts;
    for (int64_t g = 0; g < kv_heads; ++g) {
      parts.push_back(rows_of(q, "", g * group * d, group * d));
      parts.push_back(rows_of(k, "", g * d, d));
      parts.push_back(rows_of(v, "", g * d, d));
    }
    folder.items.push_back(stack(p + "attention.wqkv.weight", parts));
  }
  for (auto& item : folder.items) {
    static const std::vector<std::pair<std::string, std::string>> kNames = {
        {"self_attn.o_proj", "attention.wo"},          {"mlp.gate_proj", "feed_forward.w1"},
        {"mlp.up_proj", "feed_forward.w3"},            {"mlp.down_proj", "feed_forward.w2"},
        {"input_layernorm", "attention_norm"},         {"post_attention_layernorm", "ffn_norm"},
        {"model.embed_tokens", "model.tok_embeddings"}, {"language_model.lm_head", "language_model.output"}};
    for (const auto& [from, to] : kNames) item.name = replaced(item.name, from, to);
  }
  EXPECT_EQ(logits_of(folder.write(DType::kF32)), logits_of(fixture_path(kLlamaModel)));
}

// Llama's weights in Phi-3's fused tensors.
TEST(Layouts, Phi3FusedRows) {
  CheckpointFolder folder = CheckpointFolder::read(fixture_path(kLlamaModel));
  folder.section("llm_config").set("architectures", Json(Json::Array{Json("Phi3ForCausalLM")}));
  for (int layer = 0; layer < 2; ++layer) {
    const std::string p = "language_model.model.layers." + std::to_string(layer) + ".";
    folder.items.push_back(stack(p + "self_attn.qkv_proj.weight",
                                 {folder.take(p + "self_attn.q_proj.weight"), folder.take(p + "self_attn.k_proj.weight"),
                                  folder.take(p + "self_attn.v_proj.weight")}));
    folder.items.push_back(stack(p + "mlp.gate_up_proj.weight",
                                 {folder.take(p + "mlp.gate_proj.weight"), folder.take(p + "mlp.up_proj.weight")}));
  }
  EXPECT_EQ(logits_of(folder.write(DType::kF32)), logits_of(fixture_path(kLlamaModel)));
}

// -hf twins of whole golden cases: ids exactly, although no -hf folder is in the project's data.
TEST(Layouts, HfTwinGivesTheGoldenTokens) {
  const Golden golden = read_golden("qwen2-opengvlab");
  const std::string twin = hf_twin(CheckpointFolder::read(golden.folder), /*newer=*/true).write(DType::kBF16);
  const Checkpoint checkpoint = Checkpoint::open_directory(twin).value();
  const auto backend = open_cpu();
  Runner runner(*backend, checkpoint, {});
  for (const GoldenCase& c : golden.cases) {
    if (c.name != "history" && c.name != "two-images") continue;
    runner.encode(tiles_of(c, static_cast<int>(checkpoint.config().vision.image_size)));
    EXPECT_EQ(runner.greedy(c.prompt_ids, c.image_id, golden.eos_ids, static_cast<int64_t>(c.greedy_ids.size())).ids,
              c.greedy_ids)
        << c.name;
  }
}

}  // namespace
}  // namespace tessera::testing
