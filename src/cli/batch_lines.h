#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "core/result.h"

namespace tessera::cli {

/// The requests of a batch, one a line, blank lines left out. The text stays in its file (standard input is copied to a
/// temporary one) and a line is read when it is wanted: a batch of many pictures is not held in memory.
class BatchLines {
 public:
  /// Finds the lines of `path` ("-": standard input). Errors name the file.
  static Result<BatchLines> open(const std::string& path);

  size_t size() const { return lines_.size(); }
  /// Line `i` without its end. Errors: the file is not there or not what it was.
  Result<std::string> read(size_t i) const;

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  struct Line {
    int64_t begin = 0, bytes = 0;
  };
  Status find_lines();

  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
  std::vector<Line> lines_;
};

}  // namespace tessera::cli
