#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "vision/decoders.h"
#include "vision/row_store.h"

namespace tessera {
namespace {

struct PnmInfo {
  int kind = 0;  // the digit after P: 4 bitmap, 5 gray, 6 RGB
  int64_t width = 0, height = 0;
  int maxval = 255;
  size_t data_at = 0;
};

bool is_space(uint8_t c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

// A decimal number of the header, with the white space before it and the one character after it; '#' begins a
// comment that ends with its line.
Result<int64_t> read_number(ByteReader& reader, const char* what) {
  int64_t value = 0;
  int digits = 0;
  while (!reader.at_end()) {
    const uint8_t c = reader.u8();
    if (c == '#') {
      while (!reader.at_end()) {
        const uint8_t skipped = reader.u8();
        if (skipped == '\n' || skipped == '\r') break;
      }
      continue;
    }
    if (is_space(c)) {
      if (digits == 0) continue;
      return value;
    }
    if (c < '0' || c > '9' || ++digits > 10)
      return invalid_input(std::string("[decode] PNM header: ") + what +
                           " is no number of at most 10 digits");
    value = value * 10 + (c - '0');
  }
  return invalid_input("[decode] PNM ends in its header; the file is truncated");
}

Result<PnmInfo> read_info(ByteSpan bytes) {
  PnmInfo info;
  ByteReader reader(bytes);
  info.kind = static_cast<int>(byte_at(reader.take(2), 1)) - '0';
  if (info.kind < 4)
    return invalid_input("[decode] plain-text PNM (P" + std::to_string(info.kind) +
                         ") is not read; save it as P4, P5 or P6");
  TESSERA_ASSIGN_OR_RETURN(info.width, read_number(reader, "the width"));
  TESSERA_ASSIGN_OR_RETURN(info.height, read_number(reader, "the height"));
  if (info.kind != 4) {
    TESSERA_ASSIGN_OR_RETURN(const int64_t maxval, read_number(reader, "the largest value"));
    if (maxval < 1 || maxval > 65535)
      return invalid_input("[decode] PNM largest value is " + std::to_string(maxval) + "; expected 1..65535");
    info.maxval = static_cast<int>(maxval);
  }
  info.data_at = reader.position();
  return info;
}

// What each value becomes. Gray of more than 8 bits goes to 16 bits first and is then clipped, as the
// reference does with its integer mode.
std::vector<uint8_t> value_table(const PnmInfo& info) {
  const bool wide_gray = info.kind == 5 && info.maxval > 255;
  const double out_max = wide_gray ? 65535 : 255;
  std::vector<uint8_t> table(info.maxval > 255 ? 65536 : 256);
  for (size_t v = 0; v < table.size(); ++v) {
    const double scaled = std::nearbyint(static_cast<double>(v) / info.maxval * out_max);  // half to even
    table[v] = static_cast<uint8_t>(std::min(scaled, 255.0));
  }
  return table;
}

}  // namespace

Result<ImageHeader> read_pnm_header(ByteSpan bytes) {
  TESSERA_ASSIGN_OR_RETURN(const PnmInfo info, read_info(bytes));
  return ImageHeader{.format = ImageFormat::kPnm, .width = info.width, .height = info.height};
}

Result<Image> decode_pnm(ByteSpan bytes, const ImageHeader& header) {
  TESSERA_ASSIGN_OR_RETURN(const PnmInfo info, read_info(bytes));
  const size_t width = static_cast<size_t>(info.width), value_bytes = info.maxval > 255 ? 2 : 1;
  const size_t row_bytes = info.kind == 4 ? (width + 7) / 8 : width * value_bytes * (info.kind == 6 ? 3 : 1);
  const std::vector<uint8_t> table = value_table(info);
  ByteReader reader(bytes);
  reader.take(info.data_at);
  RowStore rows(static_cast<int>(header.width), static_cast<int>(header.height));
  for (int64_t y = 0; y < info.height; ++y) {
    const ByteSpan row = reader.take(row_bytes);
    if (reader.failed())
      return invalid_input("[decode] PNM ends in row " + std::to_string(y + 1) + " of " +
                           std::to_string(info.height) + "; the file is truncated");
    auto value = [&](size_t i) { return table[value_bytes == 2 ? u16be(row, 2 * i) : byte_at(row, i)]; };
    uint8_t* rgb = rows.append();
    for (size_t x = 0; x < width; ++x, rgb += 3)
      for (size_t c = 0; c < 3; ++c) {
        if (info.kind == 4)
          rgb[c] = byte_at(row, x / 8) >> (7 - x % 8) & 1 ? 0 : 255;
        else
          rgb[c] = value(info.kind == 6 ? 3 * x + c : x);
      }
  }
  return rows.take();
}

}  // namespace tessera
