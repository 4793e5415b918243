#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace tessera {

using ByteSpan = std::span<const std::byte>;

/// Unaligned numbers of a file format. Requires: the bytes are there.
inline uint32_t byte_at(ByteSpan s, size_t i) {
  return static_cast<uint32_t>(s[i]);
}
inline uint32_t u16le(ByteSpan s, size_t i) {
  return byte_at(s, i) | byte_at(s, i + 1) << 8;
}
inline uint32_t u16be(ByteSpan s, size_t i) {
  return byte_at(s, i) << 8 | byte_at(s, i + 1);
}
inline uint32_t u32le(ByteSpan s, size_t i) {
  return u16le(s, i) | u16le(s, i + 2) << 16;
}
inline uint32_t u32be(ByteSpan s, size_t i) {
  return u16be(s, i) << 16 | u16be(s, i + 2);
}

inline bool starts_with(ByteSpan s, const char* text, size_t length) {
  return s.size() >= length && std::memcmp(s.data(), text, length) == 0;
}

/// Walks over bytes from the front. take() past the end returns what is left and marks the reader as failed,
/// so that a format's fields can be read in a row and checked once.
class ByteReader {
 public:
  explicit ByteReader(ByteSpan bytes) : bytes_(bytes) {}

  bool failed() const { return failed_; }
  bool at_end() const { return position_ == bytes_.size(); }
  size_t position() const { return position_; }
  size_t left() const { return bytes_.size() - position_; }
  ByteSpan rest() const { return bytes_.subspan(position_); }

  ByteSpan take(size_t count) {
    if (count > left()) {
      failed_ = true;
      count = left();
    }
    position_ += count;
    return bytes_.subspan(position_ - count, count);
  }
  /// The next byte, or 0 at the end (and failed).
  uint8_t u8() {
    const ByteSpan one = take(1);
    return one.empty() ? uint8_t{0} : static_cast<uint8_t>(one[0]);
  }

 private:
  ByteSpan bytes_;
  size_t position_ = 0;
  bool failed_ = false;
};

}  // namespace tessera
