#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "core/result.h"

namespace tessera {

/// The whole content of a regular file. Errors name the file and the reason; a file larger than `max_bytes`
/// is refused before it is read.
Result<std::string> read_file(const std::string& path, size_t max_bytes);

/// Writes a file whole or not at all: under a name beside it first, then renamed (what is no regular file, such as
/// a device or a pipe, is written to as it is). Errors (kInvalidInput) name the file and the reason (no directory,
/// no permission, a full disk); nothing is left behind then.
Status write_file(const std::string& path, std::string_view bytes);

/// A read-only, private mapping of a regular file. Movable; unmapped when the last owner goes.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Tells the kernel that these pages will not be read again, so that they leave resident memory.
  void release(size_t offset, size_t length) const;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace tessera
