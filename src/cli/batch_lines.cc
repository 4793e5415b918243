#include "cli/batch_lines.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

namespace tessera::cli {
namespace {

constexpr size_t kPiece = size_t{1} << 20;

Status cannot_read(const std::string& path) {
  return invalid_input("cannot read " + path + ": " + std::strerror(errno != 0 ? errno : EIO));
}

std::FILE* copy_of_stdin() {
  std::FILE* copy = std::tmpfile();
  if (!copy) return nullptr;
  std::vector<char> piece(kPiece);
  while (const size_t n = std::fread(piece.data(), 1, piece.size(), stdin))
    if (std::fwrite(piece.data(), 1, n, copy) != n) return std::fclose(copy), nullptr;
  return copy;
}

}  // namespace

Result<BatchLines> BatchLines::open(const std::string& path) {
  BatchLines out;
  out.path_ = path == "-" ? "standard input" : path;
  errno = 0;
  if (path != "-" && std::filesystem::is_directory(path)) return invalid_input("cannot read " + path + ": it is a directory");
  out.file_.reset(path == "-" ? copy_of_stdin() : std::fopen(path.c_str(), "rb"));
  if (!out.file_) return cannot_read(out.path_);
  TESSERA_RETURN_IF_ERROR(out.find_lines());
  return out;
}

Status BatchLines::find_lines() {
  std::rewind(file_.get());
  std::vector<char> piece(kPiece);
  Line line;
  bool blank = true;
  char last = 0;
  const auto end_line = [&] {
    if (last == '\r') --line.bytes;
    if (!blank) lines_.push_back(line);
  };
  while (const size_t n = std::fread(piece.data(), 1, piece.size(), file_.get()))
    for (size_t i = 0; i < n; ++i) {
      if (piece[i] == '\n') {
        end_line();
        line = {.begin = line.begin + line.bytes + (last == '\r') + 1, .bytes = 0};
        blank = true, last = 0;
        continue;
      }
      last = piece[i];
      blank = blank && (last == ' ' || last == '\t' || last == '\r');
      ++line.bytes;
    }
  end_line();
  return std::ferror(file_.get()) ? cannot_read(path_) : Status();
}

Result<std::string> BatchLines::read(size_t i) const {
  const Line& line = lines_.at(i);
  std::string text(static_cast<size_t>(line.bytes), '\0');
  errno = 0;
  if (std::fseek(file_.get(), static_cast<long>(line.begin), SEEK_SET) != 0 ||
      std::fread(text.data(), 1, text.size(), file_.get()) != text.size())
    return cannot_read(path_);
  return text;
}

}  // namespace tessera::cli
