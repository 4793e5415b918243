#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "vision/decoders.h"
#include "vision/palette.h"
#include "vision/row_store.h"

namespace tessera {
namespace {

enum Compression : uint32_t { kRgb = 0, kRle8 = 1, kRle4 = 2, kBitfields = 3 };

// Where a pixel's three channels lie in its bytes, lowest byte first.
struct ByteOrder {
  uint8_t red, green, blue;
};

struct BmpInfo {
  int64_t width = 0, height = 0;
  bool from_top = false;
  int bits = 0;
  uint32_t compression = kRgb;
  ByteOrder order{2, 1, 0};       // 24 and 32 bits
  bool green_has_6_bits = false;  // 16 bits: 5-6-5, else 5-5-5
  Palette palette;
  size_t data_at = 0;

  size_t stride() const { return (static_cast<size_t>(width) * bits + 31) / 32 * 4; }
  size_t row_bytes() const { return (static_cast<size_t>(width) * bits + 7) / 8; }
};

Status truncated_header() {
  return invalid_input("[decode] BMP ends in its header; the file is truncated");
}

// The channel layouts that the reference knows; others are refused.
Status read_masks(const std::array<uint32_t, 4>& m, BmpInfo& info) {
  struct Layout {
    std::array<uint32_t, 4> masks;
    ByteOrder order;
  };
  static constexpr Layout kLayouts[] = {
      {{0xff0000, 0xff00, 0xff, 0}, {2, 1, 0}},          {{0xff000000, 0xff0000, 0xff00, 0}, {3, 2, 1}},
      {{0xff000000, 0xff00, 0xff, 0}, {3, 1, 0}},        {{0xff000000, 0xff0000, 0xff00, 0xff}, {3, 2, 1}},
      {{0xff, 0xff00, 0xff0000, 0xff000000}, {0, 1, 2}}, {{0xff0000, 0xff00, 0xff, 0xff000000}, {2, 1, 0}},
      {{0xff000000, 0xff00, 0xff, 0xff0000}, {3, 1, 0}}, {{0, 0, 0, 0}, {2, 1, 0}},
  };
  if (info.bits == 32)
    for (const Layout& layout : kLayouts)
      if (layout.masks == m) {
        info.order = layout.order;
        return {};
      }
  const std::array<uint32_t, 3> rgb{m[0], m[1], m[2]};
  if (info.bits == 24 && rgb == std::array<uint32_t, 3>{0xff0000, 0xff00, 0xff}) return {};
  info.green_has_6_bits = rgb == std::array<uint32_t, 3>{0xf800, 0x7e0, 0x1f};
  if (info.bits == 16 && (info.green_has_6_bits || rgb == std::array<uint32_t, 3>{0x7c00, 0x3e0, 0x1f}))
    return {};
  return invalid_input("[decode] BMP with " + std::to_string(info.bits) +
                       " bits a pixel and unusual channel masks is not read; save it as PNG");
}

Status read_palette(ByteReader& reader, uint32_t colours, size_t entry_bytes, BmpInfo& info) {
  if (colours == 0) colours = 1u << info.bits;
  const ByteSpan table = reader.take(std::min<uint32_t>(colours, 65536) * entry_bytes);
  if (colours > 65536 || table.size() / entry_bytes > 256)
    return invalid_input("[decode] BMP palette of " + std::to_string(colours) +
                         " colours; at most 256 make sense");
  bool ramp = colours > 2 && table.size() / entry_bytes >= colours;
  for (size_t i = 0; i < table.size() / entry_bytes; ++i) {
    const uint32_t b = byte_at(table, i * entry_bytes), g = byte_at(table, i * entry_bytes + 1),
                   r = byte_at(table, i * entry_bytes + 2);
    info.palette.set(static_cast<int>(i), static_cast<uint8_t>(r), static_cast<uint8_t>(g),
                     static_cast<uint8_t>(b));
    ramp = ramp && r == i && g == i && b == i;
  }
  if (ramp) info.palette = Palette::gray();  // the reference takes the indices for gray, past the end, too
  return {};
}

Status check_depth(const BmpInfo& info) {
  const bool known = info.bits == 1 || info.bits == 4 || info.bits == 8 || info.bits == 16 ||
                     info.bits == 24 || info.bits == 32;
  if (!known)
    return invalid_input("[decode] BMP with " + std::to_string(info.bits) +
                         " bits a pixel; 1, 4, 8, 16, 24 and 32 are read");
  const bool rle = info.compression == kRle8 || info.compression == kRle4;
  if (info.compression > kBitfields || (rle && info.bits > 8) ||
      (info.compression == kBitfields && info.bits < 16))
    return invalid_input("[decode] BMP compression " + std::to_string(info.compression) + " with " +
                         std::to_string(info.bits) + " bits a pixel is not read; save it as PNG");
  return {};
}

Result<BmpInfo> read_info(ByteSpan bytes) {
  ByteReader reader(bytes);
  const ByteSpan file_header = reader.take(14);
  const ByteSpan size_field = reader.take(4);
  if (reader.failed()) return truncated_header();
  const uint32_t header_size = u32le(size_field, 0);
  static constexpr uint32_t kSizes[] = {12, 40, 52, 56, 64, 108, 124};
  if (std::find(std::begin(kSizes), std::end(kSizes), header_size) == std::end(kSizes))
    return invalid_input("[decode] BMP header of " + std::to_string(header_size) + " bytes is unknown");
  const ByteSpan h = reader.take(header_size - 4);
  if (reader.failed()) return truncated_header();

  BmpInfo info;
  uint32_t colours = 0;
  const bool old = header_size == 12;
  if (old) {
    info.width = u16le(h, 0);
    info.height = u16le(h, 2);
    info.bits = static_cast<int>(u16le(h, 6));
  } else {
    info.width = u32le(h, 0);
    const uint32_t height = u32le(h, 4);
    info.from_top = height >> 24 == 0xff;  // a negative height
    info.height = info.from_top ? (int64_t{1} << 32) - height : height;
    info.bits = static_cast<int>(u16le(h, 10));
    info.compression = u32le(h, 12);
    colours = u32le(h, 28);
  }
  TESSERA_RETURN_IF_ERROR(check_depth(info));
  if (info.compression == kBitfields) {
    const bool in_header = h.size() >= 48;
    const ByteSpan masks = in_header ? h.subspan(36) : reader.take(12);
    if (reader.failed()) return truncated_header();
    const uint32_t alpha = in_header && h.size() >= 52 ? u32le(masks, 12) : 0;
    TESSERA_RETURN_IF_ERROR(read_masks({u32le(masks, 0), u32le(masks, 4), u32le(masks, 8), alpha}, info));
  }
  const size_t palette_at = reader.position();
  if (info.bits <= 8) TESSERA_RETURN_IF_ERROR(read_palette(reader, colours, old ? 3 : 4, info));

  // Some writers give the end of the header as the start of the pixels and forget the palette between them.
  info.data_at = u32le(file_header, 10);
  if (info.data_at == 0 || (info.data_at == palette_at && info.bits <= 8)) info.data_at = reader.position();
  return info;
}

void row_to_rgb(const BmpInfo& info, const uint8_t* row, uint8_t* rgb) {
  const size_t width = static_cast<size_t>(info.width);
  if (info.bits >= 24) {
    const size_t step = info.bits / 8;
    for (size_t x = 0; x < width; ++x, row += step, rgb += 3) {
      rgb[0] = row[info.order.red];
      rgb[1] = row[info.order.green];
      rgb[2] = row[info.order.blue];
    }
  } else if (info.bits == 16) {
    const int green_bits = info.green_has_6_bits ? 6 : 5;
    const int green_max = (1 << green_bits) - 1;
    for (size_t x = 0; x < width; ++x, row += 2, rgb += 3) {
      const int v = row[0] | row[1] << 8;
      rgb[0] = static_cast<uint8_t>((v >> (5 + green_bits) & 31) * 255 / 31);
      rgb[1] = static_cast<uint8_t>((v >> 5 & green_max) * 255 / green_max);
      rgb[2] = static_cast<uint8_t>((v & 31) * 255 / 31);
    }
  } else {
    std::array<uint8_t, 256> indices;
    const int per_byte = 8 / info.bits, mask = (1 << info.bits) - 1;
    for (size_t x = 0; x < width; x += indices.size()) {
      const size_t count = std::min(indices.size(), width - x);
      for (size_t i = 0; i < count; ++i) {
        const size_t at = x + i;
        indices[i] =
            static_cast<uint8_t>(row[at / per_byte] >> (8 - info.bits - at % per_byte * info.bits) & mask);
      }
      info.palette.to_rgb(std::span(indices).first(count), rgb + 3 * x);
    }
  }
}

Status too_short(const BmpInfo& info, size_t rows) {
  return invalid_input("[decode] BMP ends in row " + std::to_string(rows + 1) + " of " +
                       std::to_string(info.height) + "; the file is truncated");
}

// Run-length data as one sequence of indices, in the reference's reading: an end of line pads a begun row and
// does nothing else, a run ends with its row, a literal goes on in the next.
Result<std::vector<uint8_t>> read_rle(ByteSpan bytes, const BmpInfo& info) {
  const size_t width = static_cast<size_t>(info.width), total = width * static_cast<size_t>(info.height);
  const bool nibbles = info.compression == kRle4;
  ByteReader reader(bytes);
  reader.take(info.data_at);
  std::vector<uint8_t> out;
  auto push = [&](ByteSpan packed, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      const uint32_t byte = byte_at(packed, nibbles ? i / 2 % packed.size() : i % packed.size());
      out.push_back(static_cast<uint8_t>(!nibbles ? byte : i % 2 ? byte & 15 : byte >> 4));
    }
  };
  size_t x = 0;
  while (out.size() < total) {
    const ByteSpan pair = reader.take(2);
    if (reader.failed()) break;
    const size_t count = byte_at(pair, 0), value = byte_at(pair, 1);
    if (count > 0) {
      const size_t fitting = std::min(count, width - std::min(x, width));
      push(pair.subspan(1), fitting);
      x += fitting;
    } else if (value == 0) {  // end of line
      out.resize((out.size() + width - 1) / width * width);
      x = 0;
    } else if (value == 1) {  // end of picture
      break;
    } else if (value == 2) {  // move right and up
      const ByteSpan move = reader.take(2);
      if (reader.failed()) break;
      const size_t skipped = byte_at(move, 0) + byte_at(move, 1) * width;
      out.resize(out.size() + std::min(total - out.size(), skipped));
      x = out.size() % width;
    } else {
      const size_t literal = std::min(total - out.size(), value);
      const ByteSpan packed = reader.take(nibbles ? (literal + 1) / 2 : literal);
      if (reader.failed()) break;
      push(packed, literal);
      x += value;
      if (reader.position() % 2 != 0) reader.take(1);  // the next code begins at an even byte of the file
    }
  }
  if (out.size() < total) return too_short(info, out.size() / width);
  out.resize(total);
  return out;
}

// Rows arrive bottom up unless the height is negative.
Image in_order(Image image, bool from_top) {
  if (!from_top)
    for (int y = 0; y < image.height / 2; ++y)
      std::swap_ranges(image.row(y), image.row(y) + image.row_bytes(), image.row(image.height - 1 - y));
  return image;
}

}  // namespace

Result<ImageHeader> read_bmp_header(ByteSpan bytes) {
  TESSERA_ASSIGN_OR_RETURN(const BmpInfo info, read_info(bytes));
  return ImageHeader{.format = ImageFormat::kBmp, .width = info.width, .height = info.height};
}

Result<Image> decode_bmp(ByteSpan bytes, const ImageHeader& header) {
  TESSERA_ASSIGN_OR_RETURN(const BmpInfo info, read_info(bytes));
  RowStore rows(static_cast<int>(header.width), static_cast<int>(header.height));
  if (info.compression == kRle8 || info.compression == kRle4) {
    TESSERA_ASSIGN_OR_RETURN(const std::vector<uint8_t> indices, read_rle(bytes, info));
    const size_t width = static_cast<size_t>(info.width);
    for (size_t y = 0; y < static_cast<size_t>(info.height); ++y)
      info.palette.to_rgb(std::span(indices).subspan(y * width, width), rows.append());
  } else {
    for (size_t y = 0; y < static_cast<size_t>(info.height); ++y) {
      const size_t at = info.data_at + y * info.stride();
      if (at > bytes.size() || bytes.size() - at < info.row_bytes()) return too_short(info, y);
      row_to_rgb(info, reinterpret_cast<const uint8_t*>(bytes.data()) + at, rows.append());
    }
  }
  return in_order(rows.take(), info.from_top);
}

}  // namespace tessera
