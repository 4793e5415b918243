#include "cli/batch_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/file.h"

namespace tessera::cli {
namespace {

Status cannot_write(const std::string& path) {
  return invalid_input("cannot write " + path + ": " + std::strerror(errno));
}

// The answered lines of an existing output, by position; unanswered (error) lines are absent.
Result<std::vector<std::optional<std::string>>> read_existing(const std::string& path,
                                                              const std::vector<std::optional<Json>>& ids) {
  TESSERA_ASSIGN_OR_RETURN(std::string text, read_file(path, size_t{1} << 40));
  const size_t last_end = text.rfind('\n');
  text.resize(last_end == std::string::npos ? 0 : last_end + 1);  // a torn last line is cut
  const std::vector<std::string> lines = split_lines(text);
  if (lines.size() > ids.size())
    return invalid_input(path + " has " + std::to_string(lines.size()) + " lines for " + std::to_string(ids.size()) +
                         " requests; name another --output");
  std::vector<std::optional<std::string>> kept(ids.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    auto json = Json::parse(lines[i]);
    if (!json.ok() || !json->is_object()) {
      if (i + 1 == lines.size()) break;
      return invalid_input(path + " line " + std::to_string(i + 1) + " is no result; name another --output");
    }
    const Json* id = json->find("id");
    const std::string given = id ? id->dump() : "none";
    const std::string expected = ids[i] ? ids[i]->dump() : "none";
    if (given != expected)
      return invalid_input(path + " line " + std::to_string(i + 1) + " has id " + given + "; the input's is " + expected +
                           "; name another --output");
    if (!json->find("error")) kept[i] = lines[i];
  }
  return kept;
}

}  // namespace

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    if (end == std::string::npos) end = text.size();
    std::string line = text.substr(begin, end - begin);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.find_first_not_of(" \t") != std::string::npos) lines.push_back(std::move(line));
    begin = end + 1;
  }
  return lines;
}

Result<BatchFile> BatchFile::open(const std::string& path, const std::vector<std::optional<Json>>& ids) {
  BatchFile batch;
  batch.path_ = path;
  batch.kept_.resize(ids.size());
  if (path == "-") {
    batch.file_ = stdout;
    return batch;
  }
  if (std::filesystem::exists(path)) {
    TESSERA_ASSIGN_OR_RETURN(batch.kept_, read_existing(path, ids));
    TESSERA_RETURN_IF_ERROR(batch.reopen());
    return batch;
  }
  batch.file_ = std::fopen(path.c_str(), "wb");
  if (!batch.file_) return cannot_write(path);
  return batch;
}

// Goes on behind the answered lines at the front. Where answered lines follow an unanswered one, a new file is written
// and the old one stays whole until that is complete.
Status BatchFile::reopen() {
  const auto hole = std::find(kept_.begin(), kept_.end(), std::nullopt);
  if (std::any_of(hole, kept_.end(), [](const auto& line) { return line.has_value(); })) {
    temporary_ = path_ + ".part";
    file_ = std::fopen(temporary_.c_str(), "wb");
    return file_ ? Status() : cannot_write(temporary_);
  }
  size_t bytes = 0;
  next_ = static_cast<size_t>(hole - kept_.begin());
  for (size_t i = 0; i < next_; ++i) bytes += kept_[i]->size() + 1;
  std::error_code error;
  std::filesystem::resize_file(path_, bytes, error);
  if (error) return invalid_input("cannot write " + path_ + ": " + error.message());
  file_ = std::fopen(path_.c_str(), "ab");
  return file_ ? Status() : cannot_write(path_);
}

BatchFile::BatchFile(BatchFile&& other) noexcept
    : kept_(std::move(other.kept_)),
      path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      file_(std::exchange(other.file_, nullptr)),
      next_(other.next_) {}

BatchFile::~BatchFile() {
  if (file_ && file_ != stdout) std::fclose(file_);
}

Status BatchFile::write_line(const std::string& line) {
  const std::string whole = line + "\n";
  const long before = file_ == stdout ? -1 : std::ftell(file_);
  if (std::fwrite(whole.data(), 1, whole.size(), file_) == whole.size() && std::fflush(file_) == 0) return {};
  const Status status = cannot_write(path_);
  // Half a line must not stay behind: the file keeps whole results only.
  if (before >= 0) (void)!::ftruncate(::fileno(file_), before);
  return status;
}

// Kept lines up to the first hole, or up to position i.
Status BatchFile::write_kept_before(size_t i) {
  for (; next_ < i && kept_[next_]; ++next_) TESSERA_RETURN_IF_ERROR(write_line(*kept_[next_]));
  return {};
}

Status BatchFile::write(size_t i, const std::string& line) {
  TESSERA_RETURN_IF_ERROR(write_kept_before(i));
  TESSERA_CHECK(next_ == i, "batch results must come in order");
  ++next_;
  return write_line(line);
}

Status BatchFile::finish(bool complete) {
  Status status = write_kept_before(kept_.size());
  if (file_ == stdout) return status;
  if (std::fclose(std::exchange(file_, nullptr)) != 0 && status.ok()) status = cannot_write(path_);
  if (temporary_.empty()) return status;
  std::error_code error;
  if (complete && status.ok()) {
    std::filesystem::rename(temporary_, path_, error);
    if (error) return invalid_input("cannot rename " + temporary_ + ": " + error.message());
  } else {
    std::filesystem::remove(temporary_, error);
  }
  return status;
}

}  // namespace tessera::cli
