#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/dtype.h"
#include "core/file.h"
#include "core/result.h"

namespace tessera {

/// One tensor of a safetensors file: its form, and its bytes as offsets into the file.
struct SafetensorsEntry {
  std::string name;
  std::string stored_dtype;    ///< as the header spells it: "BF16", "F8_E4M3", ...
  std::optional<DType> dtype;  ///< absent for element types that the program does not compute with
  std::vector<int64_t> shape;
  uint64_t begin = 0;  ///< from the start of the file
  uint64_t end = 0;

  int64_t elements() const;
  /// "BF16[1024, 1024]" for messages.
  std::string describe() const;
};

/// What a safetensors header says, checked: element types known, sizes equal to their shapes, data areas that follow
/// one another without gap or overlap up to exactly the file's end, no name twice.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  ///< in the order of their data
  std::vector<std::pair<std::string, std::string>> metadata;
};

/// Reads the header of a file's bytes. Errors are one line and name `path` and, where there is one, the tensor. Never
/// allocates more than a small multiple of `file.size()`; does not touch the data area.
Result<SafetensorsHeader> parse_safetensors(std::span<const std::byte> file, const std::string& path);

/// A mapped safetensors file. Thread rule: const members may be called from several threads.
class Safetensors {
 public:
  static Result<Safetensors> open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::vector<SafetensorsEntry>& tensors() const { return header_.tensors; }
  const std::vector<std::pair<std::string, std::string>>& metadata() const { return header_.metadata; }
  const SafetensorsEntry* find(std::string_view name) const;

  /// The tensor's bytes, little-endian and row-major.
  std::span<const std::byte> bytes(const SafetensorsEntry& tensor) const {
    return file_.bytes().subspan(tensor.begin, tensor.end - tensor.begin);
  }

  /// Writes elements [begin, begin + count) converted to `dtype` (floating), then lets the pages that hold them leave
  /// resident memory: a load reads each element once. Requires: a floating tensor and a range inside it.
  void read(const SafetensorsEntry& tensor, int64_t begin, int64_t count, DType dtype, void* out) const;

 private:
  std::string path_;
  MappedFile file_;
  SafetensorsHeader header_;
  std::unordered_map<std::string, size_t> index_;
};

/// A tensor to write: what it is, and its bytes.
struct SafetensorsPart {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

/// Writes one file, tensors in the order given. Errors name the path and the reason.
Status write_safetensors(const std::string& path, std::span<const SafetensorsPart> parts);

}  // namespace tessera
