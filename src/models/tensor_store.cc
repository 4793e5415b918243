#include "models/tensor_store.h"

#include <filesystem>
#include <set>

#include "core/json.h"

namespace tessera {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMaxShards = 4096;
constexpr size_t kMaxIndexBytes = size_t{64} << 20;

std::vector<int64_t> without_ones(std::span<const int64_t> shape) {
  std::vector<int64_t> kept;
  for (int64_t dim : shape)
    if (dim != 1) kept.push_back(dim);
  return kept;
}

std::string describe(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

class MappedReader final : public TensorReader {
 public:
  MappedReader(std::shared_ptr<const Safetensors> file, const SafetensorsEntry* tensor)
      : file_(std::move(file)), tensor_(tensor) {}
  void read(int64_t begin, int64_t count, DType dtype, void* out) const override {
    file_->read(*tensor_, begin, count, dtype, out);
  }

 private:
  std::shared_ptr<const Safetensors> file_;
  const SafetensorsEntry* tensor_;
};

bool is_regular(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

// A directory without safetensors: says what is there instead, when that is known.
Status no_weights(const std::string& directory) {
  std::error_code ignored;
  for (const auto& item : fs::directory_iterator(directory, ignored)) {
    const std::string extension = item.path().extension().string();
    if (extension == ".bin" || extension == ".pth" || extension == ".pt")
      return invalid_input(directory + ": the weights are in pickle form (" + item.path().filename().string() +
                           "), which is not read; take the safetensors files of the same release, or save the model "
                           "again with save_pretrained(safe_serialization=True)");
    if (extension == ".gguf")
      return invalid_input(directory + ": GGUF files (" + item.path().filename().string() +
                           ") are not read; take the safetensors release");
  }
  return invalid_input(directory + " holds no weights: neither model.safetensors nor model.safetensors.index.json");
}

}  // namespace

Result<std::vector<std::string>> shard_files(const Json& index, const std::string& path) {
  const Json* map = index.find("weight_map");
  if (!map || !map->is_object()) return invalid_input(path + ": weight_map is missing or no object");
  std::set<std::string> files;
  for (const auto& [tensor, file] : map->as_object()) {
    if (!file.is_string() || file.as_string().empty() || file.as_string().size() > 255)
      return invalid_input(path + ": the file of tensor " + Json(tensor.substr(0, 120)).dump() + " is no file name");
    const std::string& name = file.as_string();
    if (name.find('/') != std::string::npos || name.find('\0') != std::string::npos || name == "." || name == "..")
      return invalid_input(path + ": the file of tensor " + Json(tensor.substr(0, 120)).dump() + " is " +
                           Json(name.substr(0, 120)).dump() + "; expected a file name without folders");
    files.insert(name);
    if (files.size() > kMaxShards)
      return invalid_input(path + " names more than " + std::to_string(kMaxShards) + " files");
  }
  if (files.empty()) return invalid_input(path + ": weight_map is empty");
  return std::vector<std::string>(files.begin(), files.end());
}

Status SafetensorsStore::add_file(const std::string& path) {
  TESSERA_ASSIGN_OR_RETURN(Safetensors opened, Safetensors::open(path));
  auto file = std::make_shared<const Safetensors>(std::move(opened));
  for (const SafetensorsEntry& tensor : file->tensors()) {
    const auto [at, added] = index_.emplace(tensor.name, Place{file, &tensor});
    if (!added)
      return invalid_input(path + ": tensor " + tensor.name + " is also in " + at->second.file->path());
  }
  return {};
}

Status SafetensorsStore::add_shards(const std::string& directory, const Json& index, const std::string& index_path) {
  TESSERA_ASSIGN_OR_RETURN(const std::vector<std::string> files, shard_files(index, index_path));
  for (const std::string& file : files) {
    const std::string path = directory + "/" + file;
    if (!is_regular(path))
      return invalid_input(path + ", which model.safetensors.index.json names, is missing; download it again");
    TESSERA_RETURN_IF_ERROR(add_file(path));
  }
  for (const auto& [tensor, file] : index.find("weight_map")->as_object()) {
    const auto at = index_.find(tensor);
    if (at == index_.end() || fs::path(at->second.file->path()).filename() != file.as_string())
      return invalid_input(index_path + ": tensor " + Json(tensor.substr(0, 120)).dump() + " is not in " +
                           file.as_string() + ", where the index has it");
  }
  return {};
}

Result<std::unique_ptr<SafetensorsStore>> SafetensorsStore::open(const std::string& directory) {
  auto store = std::make_unique<SafetensorsStore>();
  const std::string single = directory + "/model.safetensors";
  const std::string index_path = single + ".index.json";
  if (is_regular(single)) {
    TESSERA_RETURN_IF_ERROR(store->add_file(single));
  } else if (is_regular(index_path)) {
    TESSERA_ASSIGN_OR_RETURN(const Json index,
                             Json::parse_file(index_path, {.max_depth = 8, .max_bytes = kMaxIndexBytes}));
    TESSERA_RETURN_IF_ERROR(store->add_shards(directory, index, index_path));
  } else {
    return no_weights(directory);
  }
  return store;
}

Result<std::shared_ptr<const TensorReader>> SafetensorsStore::open(const std::string& name,
                                                                   std::span<const int64_t> shape) const {
  const auto at = index_.find(name);
  if (at == index_.end())
    return invalid_input("tensor " + name + " is absent; the model needs it with shape " + describe(shape));
  const auto& [file, tensor] = at->second;
  if (without_ones(tensor->shape) != without_ones(shape))
    return invalid_input(file->path() + ": tensor " + name + " is " + tensor->describe() +
                         "; config.json asks for shape " + describe(shape));
  if (!tensor->dtype || (*tensor->dtype != DType::kBF16 && *tensor->dtype != DType::kF16 && *tensor->dtype != DType::kF32))
    return invalid_input(file->path() + ": tensor " + name + " is " + tensor->describe() +
                         "; expected BF16, F16 or F32 (quantized checkpoints are not supported)");
  return std::shared_ptr<const TensorReader>(std::make_shared<MappedReader>(file, tensor));
}

const SafetensorsEntry* SafetensorsStore::find(const std::string& name) const {
  const auto at = index_.find(name);
  return at == index_.end() ? nullptr : at->second.tensor;
}

std::vector<std::string> SafetensorsStore::names() const {
  std::vector<std::string> names;
  names.reserve(index_.size());
  for (const auto& [name, place] : index_) names.push_back(name);
  return names;
}

uint64_t SafetensorsStore::stored_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [name, place] : index_) bytes += place.tensor->end - place.tensor->begin;
  return bytes;
}

}  // namespace tessera
