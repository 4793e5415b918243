#pragma once

#include <string>
#include <vector>

#include "models/architecture.h"
#include "models/checkpoint.h"

namespace tessera::testing {

/// Odd little shapes: nothing divides what it need not divide.
inline ModelConfig tiny_config(const std::string& architecture) {
  ModelConfig c;
  c.vision = {.hidden = 32, .layers = 3, .heads = 2, .ffn = 40, .image_size = 56, .table_size = 56, .patch_size = 14};
  c.stored = DType::kBF16;
  LanguageConfig& l = c.language;
  l.architecture = architecture;
  l.hidden = 48;
  l.layers = 3;
  l.heads = 4;
  l.kv_heads = 2;
  l.head_dim = 16;
  l.ffn = 56;
  l.vocab = 101;
  l.max_position = 256;
  l.qkv_bias = architecture == "Qwen2ForCausalLM";
  l.qk_norm = architecture.rfind("Qwen3", 0) == 0;
  if (architecture == "Qwen3MoeForCausalLM") {
    l.experts = 6;
    l.experts_per_token = 2;
    l.ffn = 24;
  }
  l.rope.head_dim = 16;
  l.rope.base = 10000;
  l.rope.max_position = l.max_position;
  return c;
}

inline ModelConfig tiny_6b_tower(const std::string& architecture) {
  ModelConfig c = tiny_config(architecture);
  c.vision.heads = 4;
  c.vision.norm = NormKind::kRms;
  c.vision.qkv_bias = false;
  c.vision.qk_norm = true;
  return c;
}

inline std::vector<uint8_t> random_tiles(int64_t count, int64_t side, uint32_t seed = 1) {
  std::vector<uint8_t> tiles(static_cast<size_t>(count * 3 * side * side));
  for (uint8_t& v : tiles) {
    seed = seed * 1664525u + 1013904223u;
    v = static_cast<uint8_t>(seed >> 24);
  }
  return tiles;
}

}  // namespace tessera::testing
