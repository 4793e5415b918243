// Steps of one token give what one step of all tokens gives: backends may serve a single row by kernels of its own.

#include "tests/models/runner.h"
#include "tests/models/tiny_models.h"

namespace tessera::testing {
namespace {

TEST(Decode, SingleTokensGiveWhatTheWholeTextGives) {
  ModelConfig config = tiny_config("Qwen2ForCausalLM");
  // Layers of InternVL's 1B, for which the GPU has such kernels.
  config.language.hidden = 896;
  config.language.ffn = 4864;
  config.language.heads = 14;
  config.language.kv_heads = 2;
  config.language.head_dim = config.language.rope.head_dim = 64;
  const Checkpoint checkpoint = random_checkpoint(config, 11);
  const auto backend = open_cpu();
  Runner runner(*backend, checkpoint, {.compute = DType::kBF16, .max_tokens = 64, .vision_batch = 1});
  constexpr int32_t kImage = 99;
  const std::vector<int32_t> text = {3, 17, 41, 5, 77, 8, 23, 60, 11, 2, 64, 33, 19, 7, 52, 90, 28, 14, 70, 1};
  constexpr int64_t kPrompt = 15;
  runner.step({text.begin(), text.begin() + kPrompt}, kImage);
  std::vector<std::vector<float>> single;
  for (size_t i = kPrompt; i < text.size(); ++i) single.push_back(runner.step({text[i]}, kImage));
  for (size_t i = kPrompt; i < text.size(); ++i) {
    runner.reset();
    const std::vector<float> whole = runner.step({text.begin(), text.begin() + static_cast<int64_t>(i) + 1}, kImage);
    // Logits are about 1; three layers of products of bf16 lie between.
    for (size_t v = 0; v < whole.size(); ++v) ASSERT_NEAR(single[i - kPrompt][v], whole[v], 0.1) << "token " << i << ", logit " << v;
  }
}

}  // namespace
}  // namespace tessera::testing
