#pragma once

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/result.h"

namespace tessera::cli {

/// The lines of a text, without line ends and without blank ones.
std::vector<std::string> split_lines(const std::string& text);

/// The output of a batch: results by position, some of them there from an earlier run. Lines are written whole and in
/// order; what has been written stays valid whatever happens next.
class BatchFile {
 public:
  /// Opens `path` ("-": standard output, nothing to continue). `ids` are the input's, absent where a line has none.
  /// A torn last line is dropped; error lines count as not done. Fails when a line is there whose id is another's, when
  /// there are more lines than requests, or when the file cannot be read or written.
  static Result<BatchFile> open(const std::string& path, const std::vector<std::optional<Json>>& ids);

  BatchFile(BatchFile&& other) noexcept;
  ~BatchFile();

  /// True when position `i` is already answered.
  bool done(size_t i) const { return kept_[i].has_value(); }
  /// Hands in the result of the next position that is not done; positions come in ascending order.
  Status write(size_t i, const std::string& line);
  /// Writes what remains of the kept lines and closes. Call once at the end, also after an early stop.
  Status finish(bool complete);

 private:
  BatchFile() = default;
  Status reopen();
  Status write_kept_before(size_t i);
  Status write_line(const std::string& line);

  std::vector<std::optional<std::string>> kept_;
  std::string path_;
  std::string temporary_;  ///< written instead of path_ while a hole in the middle is being filled
  std::FILE* file_ = nullptr;
  size_t next_ = 0;
};

}  // namespace tessera::cli
