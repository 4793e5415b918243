#pragma once

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/safetensors.h"
#include "models/tensor_store.h"
#include "tests/support/fixtures.h"

namespace tessera::testing {

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A checkpoint in memory, for tests to change and write out again as another one.
struct CheckpointFolder {
  struct Item {
    std::string name;
    std::vector<int64_t> shape;
    std::vector<float> values;
  };

  Json config;
  std::vector<Item> items;

  static CheckpointFolder read(const std::string& directory) {
    CheckpointFolder folder;
    folder.config = Json::parse_file(directory + "/config.json").value();
    const auto store = SafetensorsStore::open(directory).value();
    for (const std::string& name : store->names()) {
      const SafetensorsEntry* entry = store->find(name);
      Item item{name, entry->shape, std::vector<float>(static_cast<size_t>(entry->elements()))};
      store->open(name, entry->shape).value()->read(0, entry->elements(), DType::kF32, item.values.data());
      folder.items.push_back(std::move(item));
    }
    return folder;
  }

  Item& at(const std::string& name) {
    for (Item& item : items)
      if (item.name == name) return item;
    throw std::runtime_error("no tensor " + name);
  }
  Item take(const std::string& name) {
    Item item = at(name);
    std::erase_if(items, [&](const Item& other) { return other.name == name; });
    return item;
  }

  /// A sub-object of the configuration.
  Json& section(const std::string& key) {
    for (auto& [name, value] : config.as_object())
      if (name == key) return value;
    throw std::runtime_error("no section " + key);
  }

  /// Writes config and weights; `shards` > 1 with an index. Returns the directory.
  std::string write(DType dtype, int shards = 1) const {
    const std::string directory = scratch_dir();
    write_text(directory + "/config.json", config.dump(1));
    std::vector<std::vector<std::byte>> bytes;
    std::vector<std::vector<SafetensorsPart>> files(static_cast<size_t>(shards));
    Json map = Json::object();
    bytes.reserve(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      bytes.emplace_back(items[i].values.size() * size_of(dtype));
      convert(items[i].values.data(), DType::kF32, bytes.back().data(), dtype, items[i].values.size());
      const size_t file = i * files.size() / items.size();
      files[file].push_back({items[i].name, dtype, items[i].shape, bytes.back()});
      map.as_object().emplace_back(items[i].name, file_name(static_cast<int>(file), shards));
    }
    for (int f = 0; f < shards; ++f) {
      const Status status = write_safetensors(directory + "/" + file_name(f, shards), files[static_cast<size_t>(f)]);
      if (!status.ok()) throw std::runtime_error(status.message());
    }
    if (shards > 1) {
      Json index = Json::object();
      index.set("weight_map", std::move(map));
      write_text(directory + "/model.safetensors.index.json", index.dump(1));
    }
    return directory;
  }

  static std::string file_name(int file, int shards) {
    return shards == 1 ? "model.safetensors"
                       : "model-" + std::to_string(file + 1) + "-of-" + std::to_string(shards) + ".safetensors";
  }
};

/// Rows [begin, begin + count) of a stored tensor of any rank, as another tensor.
inline CheckpointFolder::Item rows_of(const CheckpointFolder::Item& item, std::string name, int64_t begin,
                                      int64_t count) {
  const int64_t width = static_cast<int64_t>(item.values.size()) / item.shape[0];
  std::vector<int64_t> shape = item.shape;
  shape[0] = count;
  return {std::move(name), shape,
          {item.values.begin() + begin * width, item.values.begin() + (begin + count) * width}};
}

/// Tensors below one another.
inline CheckpointFolder::Item stack(std::string name, const std::vector<CheckpointFolder::Item>& parts) {
  CheckpointFolder::Item whole{std::move(name), parts[0].shape, {}};
  whole.shape[0] = 0;
  for (const auto& part : parts) {
    whole.shape[0] += part.shape[0];
    whole.values.insert(whole.values.end(), part.values.begin(), part.values.end());
  }
  return whole;
}

}  // namespace tessera::testing
