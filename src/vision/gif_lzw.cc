#include "vision/gif_lzw.h"

#include <algorithm>
#include <array>
#include <string>

namespace tessera {
namespace {

constexpr int kMaxBits = 12;
constexpr int kTableSize = 1 << kMaxBits;

// Codes of growing width, lowest bit first, from sub-blocks that each begin with their length.
class CodeReader {
 public:
  explicit CodeReader(ByteSpan blocks) : reader_(blocks) {}

  // The next code, or -1 where the data end. A sub-block counts only when it is there in full.
  int next(int width) {
    while (bits_ < width) {
      if (block_.empty()) {
        if (reader_.at_end()) return -1;
        const size_t length = reader_.u8();
        if (length > reader_.left()) return -1;
        block_ = reader_.take(length);
        continue;
      }
      buffer_ |= byte_at(block_, 0) << bits_;
      bits_ += 8;
      block_ = block_.subspan(1);
    }
    const int code = static_cast<int>(buffer_ & ((1u << width) - 1));
    buffer_ >>= width;
    bits_ -= width;
    return code;
  }

 private:
  ByteReader reader_;
  ByteSpan block_;
  uint32_t buffer_ = 0;
  int bits_ = 0;
};

// The strings of the dictionary, each its prefix's code and a last value.
struct Table {
  std::array<uint16_t, kTableSize> prefix{};
  std::array<uint8_t, kTableSize> last{};
};

class LzwDecoder {
 public:
  LzwDecoder(int min_code_size, ByteSpan blocks, size_t count)
      : codes_(blocks), clear_(1 << min_code_size), min_bits_(min_code_size + 1), count_(count) {
    reset();
  }

  Result<std::vector<uint8_t>> run() {
    while (out_.size() < count_) {
      const int code = codes_.next(bits_);
      if (code < 0) return truncated();
      if (code == clear_) {
        reset();
        continue;
      }
      if (code == clear_ + 1) return truncated();  // the end code before the last pixel
      if (!accept(code))
        return invalid_input("[decode] GIF picture data hold an impossible code; the file is damaged");
    }
    return std::move(out_);
  }

 private:
  Status truncated() const {
    return invalid_input("[decode] GIF picture data end after " + std::to_string(out_.size()) + " of " +
                         std::to_string(count_) + " pixels; the file is truncated");
  }

  void reset() {
    bits_ = min_bits_;
    next_ = clear_ + 2;
    previous_ = -1;
  }

  bool accept(int code) {
    if (previous_ < 0) {  // the first code after a clear stands for itself
      if (code > clear_) return false;
      first_ = static_cast<uint8_t>(code);
      out_.push_back(first_);
    } else {
      if (code > next_ || (code == next_ && next_ >= kTableSize)) return false;
      // A code that is about to be made: the previous string and its first value once more.
      const bool unfinished = code == next_;
      const uint8_t repeated = first_;
      emit(unfinished ? previous_ : code);
      if (unfinished) out_.push_back(repeated);
      if (next_ < kTableSize) add(static_cast<uint16_t>(previous_), first_);
    }
    previous_ = code;
    if (out_.size() > count_) out_.resize(count_);
    return true;
  }

  void emit(int code) {
    const size_t begin = out_.size();
    for (; code >= clear_; code = table_.prefix[code]) out_.push_back(table_.last[code]);
    first_ = static_cast<uint8_t>(code);
    out_.push_back(first_);
    std::reverse(out_.begin() + static_cast<ptrdiff_t>(begin), out_.end());
  }

  void add(uint16_t prefix, uint8_t last) {
    table_.prefix[next_] = prefix;
    table_.last[next_] = last;
    if (next_ == (1 << bits_) - 1 && bits_ < kMaxBits) ++bits_;
    ++next_;
  }

  CodeReader codes_;
  Table table_;
  int clear_;
  int min_bits_;
  int bits_ = 0;       // width of the next code
  int next_ = 0;       // the code that the next string gets
  int previous_ = -1;  // the code before, or -1 after a clear
  uint8_t first_ = 0;  // first value of the previous string
  size_t count_;
  std::vector<uint8_t> out_;
};

}  // namespace

Result<std::vector<uint8_t>> decode_gif_lzw(int min_code_size, ByteSpan blocks, size_t count) {
  if (min_code_size >= kMaxBits)
    return invalid_input("[decode] GIF code size is " + std::to_string(min_code_size) +
                         "; at most 11 make sense");
  return LzwDecoder(min_code_size, blocks, count).run();
}

}  // namespace tessera
