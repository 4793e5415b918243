#include "models/catalogue.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <numeric>
#include <vector>

namespace tessera {
namespace {

struct VisionRow {
  std::string_view name;
  int64_t hidden, layers, heads, ffn;
  NormKind norm;
  bool qkv_bias, qk_norm;
};

constexpr std::array<VisionRow, 2> kVision = {{
    {"300M", 1024, 24, 16, 4096, NormKind::kLayer, true, false},
    {"6B", 3200, 45, 25, 12800, NormKind::kRms, false, true},
}};

struct LanguageRow {
  std::string_view name, architecture;
  int64_t hidden, layers, heads, kv_heads, head_dim, ffn, vocab;
  double rope_base;
  double dynamic_factor;  ///< 0: plain rope
  int64_t max_position;
  float eps;
  int64_t experts = 0, experts_per_token = 0;
};

constexpr std::string_view kInternLm = "InternLM2ForCausalLM";
constexpr std::string_view kQwen = "Qwen2ForCausalLM";
constexpr std::string_view kQwen3Dense = "Qwen3ForCausalLM";
constexpr std::string_view kQwen3Mixture = "Qwen3MoeForCausalLM";

// As the checkpoints' own configurations say where they were read, else the base models' published figures.
constexpr std::array<LanguageRow, 24> kLanguage = {{
    {"InternLM2-1.8B", kInternLm, 2048, 24, 16, 8, 128, 8192, 92553, 1e6, 2.0, 32768, 1e-5f},
    {"InternLM2.5-7B", kInternLm, 4096, 32, 32, 8, 128, 14336, 92553, 1e6, 2.0, 32768, 1e-5f},
    {"InternLM2-20B", kInternLm, 6144, 48, 48, 8, 128, 16384, 92553, 1e6, 3.0, 32768, 1e-5f},
    {"InternLM2.5-20B", kInternLm, 6144, 48, 48, 8, 128, 16384, 92553, 5e7, 2.5, 32768, 1e-5f},
    {"InternLM3-8B", kInternLm, 4096, 48, 32, 2, 128, 10240, 128142, 5e7, 6.0, 32768, 1e-5f},
    {"Phi-3-mini-128k", "Phi3ForCausalLM", 3072, 32, 32, 32, 96, 8192, 32020, 1e4, 0, 131072, 1e-5f},
    {"Qwen2-0.5B", kQwen, 896, 24, 14, 2, 64, 4864, 151655, 1e6, 0, 32768, 1e-6f},
    {"Qwen2.5-0.5B", kQwen, 896, 24, 14, 2, 64, 4864, 151674, 1e6, 2.0, 32768, 1e-6f},
    {"Qwen2.5-1.5B", kQwen, 1536, 28, 12, 2, 128, 8960, 151674, 1e6, 2.0, 32768, 1e-6f},
    {"Qwen2.5-3B", kQwen, 2048, 36, 16, 2, 128, 11008, 151674, 1e6, 2.0, 32768, 1e-6f},
    {"Qwen2.5-7B", kQwen, 3584, 28, 28, 4, 128, 18944, 151674, 1e6, 2.0, 32768, 1e-6f},
    {"Qwen2.5-14B", kQwen, 5120, 48, 40, 8, 128, 13824, 151674, 1e6, 2.0, 32768, 1e-6f},
    {"Qwen2.5-32B", kQwen, 5120, 64, 40, 8, 128, 27648, 151674, 1e6, 2.0, 32768, 1e-6f},
    {"Qwen2.5-72B", kQwen, 8192, 80, 64, 8, 128, 29568, 151674, 1e6, 2.0, 32768, 1e-6f},
    {"Yi-34B", "LlamaForCausalLM", 7168, 60, 56, 8, 128, 20480, 64007, 5e6, 0, 4096, 1e-5f},
    {"Llama-3-70B", "LlamaForCausalLM", 8192, 80, 64, 8, 128, 28672, 128265, 5e5, 0, 8192, 1e-5f},
    {"Qwen3-0.6B", kQwen3Dense, 1024, 28, 16, 8, 128, 3072, 151936, 1e6, 0, 40960, 1e-6f},
    {"Qwen3-1.7B", kQwen3Dense, 2048, 28, 16, 8, 128, 6144, 151936, 1e6, 0, 40960, 1e-6f},
    {"Qwen3-4B", kQwen3Dense, 2560, 36, 32, 8, 128, 9728, 151936, 1e6, 0, 40960, 1e-6f},
    {"Qwen3-8B", kQwen3Dense, 4096, 36, 32, 8, 128, 12288, 151936, 1e6, 0, 40960, 1e-6f},
    {"Qwen3-14B", kQwen3Dense, 5120, 40, 40, 8, 128, 17408, 151936, 1e6, 0, 40960, 1e-6f},
    {"Qwen3-32B", kQwen3Dense, 5120, 64, 64, 8, 128, 25600, 151936, 1e6, 0, 40960, 1e-6f},
    {"Qwen3-30B-A3B", kQwen3Mixture, 2048, 48, 32, 4, 128, 768, 151936, 1e6, 0, 40960, 1e-6f, 128, 8},
    {"Qwen3-235B-A22B", kQwen3Mixture, 4096, 94, 64, 4, 128, 1536, 151936, 1e6, 0, 40960, 1e-6f, 128, 8},
}};

constexpr std::string_view kGptOss = "its language model, GPT-OSS, is not supported; take another release";
constexpr std::string_view kFlash = "its visual router (Flash) is not supported; take the release without -Flash";

constexpr std::array<Release, 34> kReleases = {{
    {"InternVL-Chat-V1-5", "6B", "InternLM2-20B", "internlm2-chat", 25.514, ""},
    {"Mini-InternVL-Chat-2B-V1-5", "300M", "InternLM2-1.8B", "internlm2-chat", 2.206, ""},
    {"Mini-InternVL-Chat-4B-V1-5", "300M", "Phi-3-mini-128k", "phi3-chat", 4.147, ""},
    {"InternVL2-1B", "300M", "Qwen2-0.5B", "Hermes-2", 0.938, ""},
    {"InternVL2-2B", "300M", "InternLM2-1.8B", "internlm2-chat", 2.206, ""},
    {"InternVL2-4B", "300M", "Phi-3-mini-128k", "phi3-chat", 4.147, ""},
    {"InternVL2-8B", "300M", "InternLM2.5-7B", "internlm2-chat", 8.075, ""},
    {"InternVL2-26B", "6B", "InternLM2-20B", "internlm2-chat", 25.514, ""},
    {"InternVL2-40B", "6B", "Yi-34B", "Hermes-2", 40.069, ""},
    {"InternVL2-Llama3-76B", "6B", "Llama-3-70B", "internlm2-chat", 76.262, ""},
    {"InternVL2_5-1B", "300M", "Qwen2.5-0.5B", "internvl2_5", 0.938, ""},
    {"InternVL2_5-2B", "300M", "InternLM2-1.8B", "internvl2_5", 2.206, ""},
    {"InternVL2_5-4B", "300M", "Qwen2.5-3B", "internvl2_5", 3.713, ""},
    {"InternVL2_5-8B", "300M", "InternLM2.5-7B", "internvl2_5", 8.075, ""},
    {"InternVL2_5-26B", "6B", "InternLM2.5-20B", "internvl2_5", 25.514, ""},
    {"InternVL2_5-38B", "6B", "Qwen2.5-32B", "internvl2_5", 38.388, ""},
    {"InternVL2_5-78B", "6B", "Qwen2.5-72B", "internvl2_5", 78.408, ""},
    {"InternVL3-1B", "300M", "Qwen2.5-0.5B", "internvl2_5", 0.938, ""},
    {"InternVL3-2B", "300M", "Qwen2.5-1.5B", "internvl2_5", 2.089, ""},
    {"InternVL3-8B", "300M", "Qwen2.5-7B", "internvl2_5", 7.944, ""},
    {"InternVL3-9B", "300M", "InternLM3-8B", "internvl2_5", 9.139, ""},
    {"InternVL3-14B", "300M", "Qwen2.5-14B", "internvl2_5", 15.117, ""},
    {"InternVL3-38B", "6B", "Qwen2.5-32B", "internvl2_5", 38.388, ""},
    {"InternVL3-78B", "6B", "Qwen2.5-72B", "internvl2_5", 78.408, ""},
    {"InternVL3_5-1B", "300M", "Qwen3-0.6B", "internvl2_5", 1.061, ""},
    {"InternVL3_5-2B", "300M", "Qwen3-1.7B", "internvl2_5", 2.348, ""},
    {"InternVL3_5-4B", "300M", "Qwen3-4B", "internvl2_5", 4.732, ""},
    {"InternVL3_5-8B", "300M", "Qwen3-8B", "internvl2_5", 8.528, ""},
    {"InternVL3_5-14B", "300M", "Qwen3-14B", "internvl2_5", 15.120, ""},
    {"InternVL3_5-38B", "6B", "Qwen3-32B", "internvl2_5", 38.390, ""},
    {"InternVL3_5-30B-A3B", "300M", "Qwen3-30B-A3B", "internvl2_5", 30.849, ""},
    {"InternVL3_5-241B-A28B", "6B", "Qwen3-235B-A22B", "internvl2_5", 240.699, ""},
    {"InternVL3_5-GPT-OSS-20B-A4B-Preview", "300M", "", "internvl3_5_gpt_oss", 21.239, kGptOss},
    {"InternVL3_5-Flash", "300M", "", "internvl2_5", 0, kFlash},
}};

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

bool strip_end(std::string& text, std::string_view end) {
  if (text.size() <= end.size() || text.compare(text.size() - end.size(), end.size(), end) != 0) return false;
  text.resize(text.size() - end.size());
  return true;
}

std::string without_owner(std::string_view name) {
  std::string key = lower(name);
  constexpr std::string_view kOwner = "opengvlab/";
  if (key.rfind(kOwner, 0) == 0) key.erase(0, kOwner.size());
  return key;
}

const Release* find_exact(const std::string& key) {
  for (const Release& release : kReleases)
    if (lower(release.name) == key) return &release;
  return nullptr;
}

const LanguageRow& language_row(std::string_view name) {
  for (const LanguageRow& row : kLanguage)
    if (row.name == name) return row;
  check_failed(__FILE__, __LINE__, "a row", "language model " + std::string(name));
}

LanguageConfig language_config(const LanguageRow& row) {
  LanguageConfig c;
  c.architecture = std::string(row.architecture);
  c.hidden = row.hidden;
  c.layers = row.layers;
  c.heads = row.heads;
  c.kv_heads = row.kv_heads;
  c.head_dim = row.head_dim;
  c.ffn = row.ffn;
  c.vocab = row.vocab;
  c.max_position = row.max_position;
  c.norm_eps = row.eps;
  c.qkv_bias = row.architecture == kQwen;
  c.qk_norm = row.architecture == kQwen3Dense || row.architecture == kQwen3Mixture;
  c.experts = row.experts;
  c.experts_per_token = row.experts_per_token;
  c.rope.head_dim = static_cast<int>(row.head_dim);
  c.rope.base = row.rope_base;
  c.rope.max_position = row.max_position;
  if (row.dynamic_factor > 0) {
    c.rope.kind = RopeKind::kDynamicNtk;
    c.rope.factor = row.dynamic_factor;
  }
  if (row.architecture == "Phi3ForCausalLM") {
    // The published factors are the checkpoint's business; ones have the same cost and the same switch.
    c.rope.kind = RopeKind::kLongRope;
    c.rope.original_max_position = 4096;
    c.rope.short_factors.assign(static_cast<size_t>(row.head_dim / 2), 1.0f);
    c.rope.long_factors = c.rope.short_factors;
    c.rope.attention_scale = 1.1902380714238083f;  // sqrt(1 + ln(131072 / 4096) / ln(4096))
  }
  return c;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

int64_t vision_parameters(const VisionConfig& v) {
  const int64_t norm = v.norm == NormKind::kLayer ? 2 * v.hidden : v.hidden;
  const int64_t attention = 4 * v.hidden * v.hidden + v.hidden + (v.qkv_bias ? 3 * v.hidden : 0) +
                            (v.qk_norm ? 2 * v.hidden : 0);
  const int64_t mlp = 2 * v.hidden * v.ffn + v.ffn + v.hidden;
  const int64_t embeddings = v.hidden * (3 * v.patch_size * v.patch_size + 1) + v.hidden +
                             (1 + v.table_side() * v.table_side()) * v.hidden;
  return embeddings + v.layers * (attention + mlp + 2 * norm + 2 * v.hidden);
}

int64_t language_parameters(const LanguageConfig& c) {
  const int64_t q = c.heads * c.head_dim;
  const int64_t qkv = q + 2 * c.kv_heads * c.head_dim;
  const int64_t attention = c.hidden * (qkv + q) + (c.qkv_bias ? qkv : 0) + (c.qk_norm ? 2 * c.head_dim : 0);
  const int64_t mlp = 3 * c.hidden * c.ffn;
  const int64_t block = c.experts > 0 ? c.experts * mlp + c.experts * c.hidden : mlp;
  return c.layers * (attention + block + 2 * c.hidden) + c.hidden + c.vocab * c.hidden * (c.tied ? 1 : 2);
}

}  // namespace

std::span<const Release> releases() { return kReleases; }

const Release* find_release(std::string_view name) {
  std::string key = without_owner(name);
  if (const Release* exact = find_exact(key)) return exact;
  if (key.rfind("internvl3_5-", 0) == 0 && key.find("-flash") != std::string::npos) return find_exact("internvl3_5-flash");
  strip_end(key, "-hf");
  if (const Release* plain = find_exact(key)) return plain;
  for (const std::string_view stage : {"-mpo", "-instruct", "-pretrained"})
    if (strip_end(key, stage)) return find_exact(key);
  return nullptr;
}

std::string nearest_release(std::string_view name) {
  const std::string key = without_owner(name);
  const Release* nearest = nullptr;
  size_t best = std::max<size_t>(key.size() / 3, 2);  // farther than that is no slip of the finger
  for (const Release& release : kReleases) {
    const size_t distance = edit_distance(key, lower(release.name));
    if (distance < best) {
      best = distance;
      nearest = &release;
    }
  }
  return nearest ? std::string(nearest->name) : "";
}

Result<ModelConfig> release_config(std::string_view name) {
  const Release* release = find_release(name);
  if (!release) {
    const std::string nearest = nearest_release(name);
    return invalid_input("no released model is named " + std::string(name) +
                         (nearest.empty() ? "" : "; did you mean " + nearest + "?"));
  }
  if (!release->unsupported.empty())
    return invalid_input(std::string(release->name) + " is not supported: " + std::string(release->unsupported));
  const VisionRow& vision = release->vision == kVision[0].name ? kVision[0] : kVision[1];
  ModelConfig config;
  config.vision = {.hidden = vision.hidden,
                   .layers = vision.layers,
                   .heads = vision.heads,
                   .ffn = vision.ffn,
                   .norm = vision.norm,
                   .qkv_bias = vision.qkv_bias,
                   .qk_norm = vision.qk_norm};
  config.language = language_config(language_row(release->language));
  config.template_name = std::string(release->template_name);
  return config;
}

int64_t parameter_count(const ModelConfig& config) {
  const int64_t folded = 4 * config.vision.hidden;
  const int64_t out = config.language.hidden;
  const int64_t projector = 2 * folded + folded * out + out + out * out + out;
  return vision_parameters(config.vision) + projector + language_parameters(config.language);
}

}  // namespace tessera
