#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/json.h"
#include "core/result.h"
#include "core/safetensors.h"

namespace tessera {

/// The numbers of one stored tensor, row-major. Thread rule: read() may be called from several threads at once.
class TensorReader {
 public:
  virtual ~TensorReader() = default;
  /// Writes elements [begin, begin + count) converted to `dtype`. Requires: a range inside the tensor.
  virtual void read(int64_t begin, int64_t count, DType dtype, void* out) const = 0;
};

/// Tensors by name: the files of a checkpoint, or a generator that knows every tensor.
class TensorStore {
 public:
  virtual ~TensorStore() = default;
  virtual bool contains(const std::string& name) const = 0;
  /// The tensor, which must have this shape (dimensions of 1 aside) and a floating element type. Errors name the
  /// tensor, its file and both shapes.
  virtual Result<std::shared_ptr<const TensorReader>> open(const std::string& name,
                                                           std::span<const int64_t> shape) const = 0;
  /// All names; empty for a generator.
  virtual std::vector<std::string> names() const { return {}; }
  /// Bytes of all tensors as stored; 0 for a generator.
  virtual uint64_t stored_bytes() const { return 0; }
};

/// The safetensors files of a checkpoint directory: model.safetensors, or the shards that
/// model.safetensors.index.json lists. Opening reads headers only.
class SafetensorsStore final : public TensorStore {
 public:
  static Result<std::unique_ptr<SafetensorsStore>> open(const std::string& directory);

  bool contains(const std::string& name) const override { return index_.count(name) != 0; }
  Result<std::shared_ptr<const TensorReader>> open(const std::string& name,
                                                   std::span<const int64_t> shape) const override;
  std::vector<std::string> names() const override;
  uint64_t stored_bytes() const override;
  /// The stored form of a tensor; nullptr when it is not there.
  const SafetensorsEntry* find(const std::string& name) const;

 private:
  struct Place {
    std::shared_ptr<const Safetensors> file;
    const SafetensorsEntry* tensor;
  };
  Status add_file(const std::string& path);
  Status add_shards(const std::string& directory, const Json& index, const std::string& index_path);

  std::map<std::string, Place> index_;
};

/// The shard files that an index names, sorted, each once; and the checks that need no files: a weight_map of strings,
/// file names without folders. `path` is only named in errors.
Result<std::vector<std::string>> shard_files(const Json& index, const std::string& path);

/// Generates every tensor from a seed: the same (seed, name, element) gives the same value, exact in bf16. Values are
/// scaled so that a forward pass stays in range (products keep the variance of their inputs, norm weights lie near 1).
/// About a nanosecond an element; nothing is kept.
class RandomStore final : public TensorStore {
 public:
  /// `head` is the head's name; empty when there is none.
  RandomStore(uint64_t seed, std::string head) : seed_(seed), head_(std::move(head)) {}

  bool contains(const std::string& name) const override;
  Result<std::shared_ptr<const TensorReader>> open(const std::string& name,
                                                   std::span<const int64_t> shape) const override;

 private:
  uint64_t seed_;
  std::string head_;
};

}  // namespace tessera
