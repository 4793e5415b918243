// Writes a checkpoint of a released model's shape with random weights, for runs that need files: how long a start takes,
// what is held in memory, a request mix. The tokenizer comes from another folder
// (tokenizer.json and tokenizer_config.json of any Qwen tokenizer; InternVL's tokens are added where they are not there).
//   make_checkpoint InternVL3-8B OUT_DIR TOKENIZER_DIR
// Only shapes with a Qwen2 language model (InternVL2.5 and 3 of 1B, 8B, ...): their configuration is the plainest.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>

#include "backends/registry.h"
#include "core/json.h"
#include "core/thread_pool.h"
#include "models/checkpoint.h"
#include "models/model.h"
#include "runtime/planning_backend.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

struct StoredTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::shared_ptr<const TensorReader> reader;
  uint64_t begin = 0;  ///< byte in its file's data
  int64_t elements() const {
    int64_t n = 1;
    for (int64_t dim : shape) n *= dim;
    return n;
  }
};

// Notes what a loader asks for: that is what a checkpoint of this shape holds.
class RecordingStore final : public TensorStore {
 public:
  explicit RecordingStore(const TensorStore& inner) : inner_(inner) {}
  bool contains(const std::string& name) const override { return inner_.contains(name); }
  Result<std::shared_ptr<const TensorReader>> open(const std::string& name, std::span<const int64_t> shape) const override {
    TESSERA_ASSIGN_OR_RETURN(auto reader, inner_.open(name, shape));
    const bool known = std::any_of(tensors.begin(), tensors.end(), [&](const StoredTensor& t) { return t.name == name; });
    if (!known) tensors.push_back({name, {shape.begin(), shape.end()}, reader});
    return reader;
  }
  mutable std::vector<StoredTensor> tensors;

 private:
  const TensorStore& inner_;
};

std::vector<StoredTensor> tensors_of(const Checkpoint& random) {
  auto recording = std::make_shared<RecordingStore>(random.tensors());
  const Checkpoint asked(random.name(), "", random.config(), recording);
  DeviceLimits limits{.name = "plan", .kind = "cpu"};
  const auto sizing = open_sizing(limits).value();
  PlanningBackend backend(limits, *sizing);
  CountingAllocator counting;
  auto model = load_model(asked, backend, counting, {.compute = random.config().stored});
  if (!model.ok()) throw std::runtime_error(model.status().message());
  return std::move(recording->tensors);
}

Json strings(std::initializer_list<const char*> words) {
  Json list = Json::array();
  for (const char* word : words) list.push_back(Json(word));
  return list;
}

Json config_json(const ModelConfig& c) {
  Json config, language, vision;
  language.set("architectures", strings({"Qwen2ForCausalLM"}));
  language.set("hidden_size", c.language.hidden);
  language.set("num_hidden_layers", c.language.layers);
  language.set("num_attention_heads", c.language.heads);
  language.set("num_key_value_heads", c.language.kv_heads);
  language.set("intermediate_size", c.language.ffn);
  language.set("vocab_size", c.language.vocab);
  language.set("max_position_embeddings", c.language.max_position);
  language.set("rms_norm_eps", static_cast<double>(c.language.norm_eps));
  language.set("rope_theta", c.language.rope.base);
  language.set("tie_word_embeddings", c.language.tied);
  vision.set("hidden_size", c.vision.hidden);
  vision.set("num_hidden_layers", c.vision.layers);
  vision.set("num_attention_heads", c.vision.heads);
  vision.set("intermediate_size", c.vision.ffn);
  vision.set("image_size", c.vision.table_size);
  vision.set("patch_size", c.vision.patch_size);
  vision.set("norm_type", c.vision.norm == NormKind::kLayer ? "layer_norm" : "rms_norm");
  vision.set("qkv_bias", c.vision.qkv_bias);
  vision.set("qk_normalization", c.vision.qk_norm);
  config.set("model_type", "internvl_chat");
  config.set("template", "internvl2_5");
  config.set("ps_version", c.pixel_shuffle_version == 2 ? "v2" : "v1");
  config.set("select_layer", int64_t{c.select_layer});
  config.set("force_image_size", c.vision.image_size);
  config.set("downsample_ratio", c.downsample_ratio);
  config.set("dynamic_image_size", c.dynamic_image_size);
  config.set("use_thumbnail", c.use_thumbnail);
  config.set("min_dynamic_patch", c.min_dynamic_patch);
  config.set("max_dynamic_patch", c.max_dynamic_patch);
  config.set("torch_dtype", "bfloat16");
  config.set("llm_config", std::move(language));
  config.set("vision_config", std::move(vision));
  return config;
}

// One safetensors file: header, then the tensors' numbers, written by several threads in pieces.
void write_shard(const std::string& path, std::vector<StoredTensor>& tensors, ThreadPool& pool) {
  Json header;
  uint64_t at = 0;
  for (StoredTensor& t : tensors) {
    Json one, shape = Json::array(), offsets = Json::array();
    for (int64_t dim : t.shape) shape.push_back(Json(dim));
    t.begin = at;
    at += static_cast<uint64_t>(t.elements()) * 2;
    offsets.push_back(Json(static_cast<int64_t>(t.begin)));
    offsets.push_back(Json(static_cast<int64_t>(at)));
    one.set("dtype", "BF16");
    one.set("shape", std::move(shape));
    one.set("data_offsets", std::move(offsets));
    header.set(t.name, std::move(one));
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const int file = ::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644);
  if (file < 0) throw std::runtime_error("cannot write " + path);
  const auto put = [&](const void* data, size_t bytes, uint64_t place) {
    if (::pwrite(file, data, bytes, static_cast<off_t>(place)) != static_cast<ssize_t>(bytes)) throw std::runtime_error("cannot write " + path);
  };
  const uint64_t length = text.size();
  put(&length, 8, 0);
  put(text.data(), text.size(), 8);
  constexpr int64_t kPiece = int64_t{4} << 20;  // elements
  struct Piece {
    const StoredTensor* tensor;
    int64_t begin, count;
  };
  std::vector<Piece> pieces;
  for (const StoredTensor& t : tensors)
    for (int64_t begin = 0; begin < t.elements(); begin += kPiece)
      pieces.push_back({&t, begin, std::min(kPiece, t.elements() - begin)});
  pool.parallel_for(static_cast<int64_t>(pieces.size()), [&](int64_t i, int) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    std::vector<bf16> numbers(static_cast<size_t>(piece.count));
    piece.tensor->reader->read(piece.begin, piece.count, DType::kBF16, numbers.data());
    put(numbers.data(), numbers.size() * 2, 8 + length + piece.tensor->begin + static_cast<uint64_t>(piece.begin) * 2);
  });
  ::close(file);
}

void write_weights(const std::string& directory, std::vector<StoredTensor> tensors) {
  constexpr uint64_t kShardBytes = uint64_t{5} << 30;
  std::vector<std::vector<StoredTensor>> shards(1);
  uint64_t bytes = 0;
  for (StoredTensor& t : tensors) {
    const uint64_t own = static_cast<uint64_t>(t.elements()) * 2;
    if (bytes > 0 && bytes + own > kShardBytes) shards.emplace_back(), bytes = 0;
    bytes += own;
    shards.back().push_back(std::move(t));
  }
  ThreadPool pool(available_cores());
  Json index, map;
  for (size_t i = 0; i < shards.size(); ++i) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    write_shard(directory + "/" + name, shards[i], pool);
    for (const StoredTensor& t : shards[i]) map.set(t.name, Json(name));
  }
  index.set("weight_map", std::move(map));
  std::ofstream(directory + "/model.safetensors.index.json") << index.dump();
}

// InternVL's own tokens behind the last one of a plain tokenizer. Returns the number of ids.
int64_t add_picture_tokens(const std::string& path) {
  Json tokenizer = Json::parse_file(path, {.max_bytes = size_t{64} << 20}).value();
  Json::Array* added = nullptr;
  for (auto& [key, value] : tokenizer.as_object())
    if (key == "added_tokens") added = &value.as_array();
  if (!added) throw std::runtime_error(path + " has no added_tokens");
  int64_t next = 0;
  bool there = false;
  for (const Json& token : *added) {
    next = std::max(next, token.find("id")->as_int64() + 1);
    there = there || token.find("content")->as_string() == "<IMG_CONTEXT>";
  }
  if (there) return next;
  for (const char* content : {"<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"}) {
    Json token;
    token.set("id", next++);
    token.set("content", content);
    for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized"}) token.set(flag, false);
    token.set("special", true);
    added->push_back(std::move(token));
  }
  std::ofstream(path) << tokenizer.dump();
  return next;
}

int run(const std::string& model, const std::string& out, const std::string& tokenizer) {
  auto opened = Checkpoint::open(model, {.allow_catalogue = true});
  if (!opened.ok()) return std::fprintf(stderr, "%s\n", opened.status().message().c_str()), 2;
  if (opened->config().language.architecture != "Qwen2ForCausalLM")
    return std::fprintf(stderr, "%s has a %s; only Qwen2ForCausalLM is written\n", model.c_str(), opened->config().language.architecture.c_str()), 2;
  fs::create_directories(out);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    fs::copy_file(tokenizer + "/" + name, out + "/" + name, fs::copy_options::overwrite_existing);
  ModelConfig config = opened->config();
  config.language.vocab = std::max(config.language.vocab, add_picture_tokens(out + "/tokenizer.json"));
  std::ofstream(out + "/config.json") << config_json(config).dump(2);
  write_weights(out, tensors_of(random_checkpoint(config, 0)));
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "make_checkpoint MODEL OUT_DIR TOKENIZER_DIR\n"), 2;
  try {
    return tessera::run(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "make_checkpoint: %s\n", error.what()), 1;
  }
}
