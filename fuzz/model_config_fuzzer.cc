// config.json of either format: what is accepted keeps the promises that loading and planning build on.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "models/architecture.h"
#include "models/catalogue.h"

namespace {
void require(bool condition) {
  if (!condition) std::abort();
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = tessera::Json::parse(text, {.max_depth = 32, .max_bytes = 1 << 16});
  if (!json.ok()) return 0;
  // The same text also stands for the files beside it: all of them are a stranger's.
  const tessera::ConfigFiles files{.config = &*json, .generation = &*json, .preprocessor = &*json, .processor = &*json};
  const auto config = tessera::parse_config(files, "fuzz");
  if (!config.ok()) {
    require(config.status().message().find('\n') == std::string::npos);
    return 0;
  }
  const tessera::LanguageConfig& l = config->language;
  const tessera::VisionConfig& v = config->vision;
  require(tessera::find_architecture(l.architecture) != nullptr);
  require(l.hidden > 0 && l.layers > 0 && l.heads > 0 && l.kv_heads > 0 && l.heads % l.kv_heads == 0);
  require(l.head_dim > 0 && l.head_dim % 2 == 0 && l.ffn > 0 && l.vocab > 0 && l.max_position > 0);
  require(v.hidden % v.heads == 0 && v.side() > 0 && v.side() % 2 == 0 && v.table_side() > 0);
  require(config->tokens_per_tile() == v.side() * v.side() / 4);
  require(config->vision_layers() >= 0 && config->vision_layers() <= v.layers);
  require(config->min_dynamic_patch >= 1 && config->min_dynamic_patch <= config->max_dynamic_patch);
  require(tessera::parameter_count(*config) > 0);  // no product of sizes overflows
  tessera::rope_inverse_frequencies(l.rope, l.max_position + 1);
  return 0;
}
