#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace tessera {
namespace {

// Owns a descriptor for the length of one function.
struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

Result<size_t> open_regular(const std::string& path, Descriptor& out) {
  out.fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // O_NONBLOCK: a FIFO must not hang us
  if (out.fd < 0) return invalid_input("cannot open " + path + ": " + std::strerror(errno));
  struct stat info {};
  if (::fstat(out.fd, &info) != 0) return invalid_input("cannot stat " + path + ": " + std::strerror(errno));
  if (!S_ISREG(info.st_mode)) return invalid_input(path + " is not a regular file");
  return static_cast<size_t>(info.st_size);
}

}  // namespace

Result<std::string> read_file(const std::string& path, size_t max_bytes) {
  Descriptor file;
  TESSERA_ASSIGN_OR_RETURN(size_t size, open_regular(path, file));
  if (size > max_bytes)
    return invalid_input(path + " has " + std::to_string(size) + " bytes; the limit is " + std::to_string(max_bytes));
  std::string text(size, '\0');
  size_t done = 0;
  while (done < size) {
    ssize_t n = ::read(file.fd, text.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return invalid_input("cannot read " + path + ": " + std::strerror(errno));
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

Status write_file(const std::string& path, std::string_view bytes) {
  struct stat info {};
  const bool in_place = ::lstat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode);
  const std::string target = in_place ? path : path + ".part" + std::to_string(::getpid());
  auto failure = [&](const char* step) {
    const int reason = errno;
    if (!in_place) ::unlink(target.c_str());
    return invalid_input(std::string("cannot ") + step + " " + path + ": " + std::strerror(reason));
  };
  Descriptor file;
  file.fd = ::open(target.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file.fd < 0) return failure("create");
  while (!bytes.empty()) {
    const ssize_t n = ::write(file.fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failure("write");
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  if (::close(std::exchange(file.fd, -1)) != 0) return failure("write");
  if (!in_place && ::rename(target.c_str(), path.c_str()) != 0) return failure("write");
  return {};
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  Descriptor file;
  TESSERA_ASSIGN_OR_RETURN(size_t size, open_regular(path, file));
  MappedFile mapped;
  if (size == 0) return mapped;
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) return invalid_input("cannot map " + path + ": " + std::strerror(errno));
  mapped.data_ = static_cast<const std::byte*>(data);
  mapped.size_ = size;
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release(size_t offset, size_t length) const {
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t first = (offset + page - 1) / page * page;  // whole pages inside the range only
  const size_t last = (offset + length) / page * page;
  if (last > first) ::madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_DONTNEED);
}

}  // namespace tessera
