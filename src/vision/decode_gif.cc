#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "vision/decoders.h"
#include "vision/gif_lzw.h"
#include "vision/palette.h"
#include "vision/row_store.h"

namespace tessera {
namespace {

struct GifFrame {
  uint32_t screen_width = 0, screen_height = 0;  // the logical screen, widened where the frame needs it
  uint32_t left = 0, top = 0, width = 0, height = 0;
  bool interlaced = false;
  uint8_t background = 0;  // index around the frame: the transparent one if there is one
  Palette palette;
  int min_code_size = 0;
  size_t data_at = 0;  // first sub-block of the picture data
};

Status truncated() {
  return invalid_input("[decode] GIF ends before its first frame; the file is truncated");
}

// A colour table of the file; plain gray ramps stand for gray also past their end, as in the reference.
std::optional<Palette> read_table(ByteReader& reader, uint32_t flags) {
  const ByteSpan table = reader.take(size_t{3} << ((flags & 7) + 1));
  if (reader.failed()) return std::nullopt;
  Palette palette;
  bool ramp = true;
  for (size_t i = 0; i < table.size() / 3; ++i) {
    const uint8_t r = static_cast<uint8_t>(table[3 * i]), g = static_cast<uint8_t>(table[3 * i + 1]),
                  b = static_cast<uint8_t>(table[3 * i + 2]);
    palette.set(static_cast<int>(i), r, g, b);
    ramp = ramp && r == i && g == i && b == i;
  }
  return ramp ? Palette::gray() : palette;
}

// Skips an extension; a graphic control extension names the transparent index.
void read_extension(ByteReader& reader, GifFrame& frame) {
  constexpr uint8_t kGraphicControl = 0xf9;
  const uint8_t label = reader.u8();
  bool first = true;
  while (const uint8_t length = reader.u8()) {
    const ByteSpan block = reader.take(length);
    if (label == kGraphicControl && first && block.size() >= 4 && (byte_at(block, 0) & 1))
      frame.background = static_cast<uint8_t>(block[3]);
    first = false;
  }
}

Status read_descriptor(ByteReader& reader, GifFrame& frame) {
  const ByteSpan d = reader.take(9);
  if (reader.failed()) return truncated();
  frame.left = u16le(d, 0);
  frame.top = u16le(d, 2);
  frame.width = u16le(d, 4);
  frame.height = u16le(d, 6);
  if (frame.width == 0 || frame.height == 0)
    return invalid_input("[decode] GIF frame of " + std::to_string(frame.width) + " x " +
                         std::to_string(frame.height) + ": a side is 0; the picture is damaged");
  frame.screen_width = std::max(frame.screen_width, frame.left + frame.width);
  frame.screen_height = std::max(frame.screen_height, frame.top + frame.height);
  const uint32_t flags = byte_at(d, 8);
  frame.interlaced = flags & 0x40;
  if (flags & 0x80) {
    const auto table = read_table(reader, flags);
    if (!table) return truncated();
    frame.palette = *table;
  }
  frame.min_code_size = reader.u8();
  frame.data_at = reader.position();
  return reader.failed() ? truncated() : Status{};
}

Result<GifFrame> read_first_frame(ByteSpan bytes) {
  ByteReader reader(bytes);
  const ByteSpan head = reader.take(13);
  if (reader.failed()) return truncated();
  GifFrame frame{.screen_width = u16le(head, 6), .screen_height = u16le(head, 8), .palette = Palette::gray()};
  const uint32_t flags = byte_at(head, 10);
  if (flags & 0x80) {
    const auto table = read_table(reader, flags);
    if (!table) return truncated();
    frame.palette = *table;
  }
  while (!reader.failed() && !reader.at_end()) {
    switch (reader.u8()) {
      case ';':
        return invalid_input("[decode] GIF holds no picture; the file is damaged");
      case '!':
        read_extension(reader, frame);
        break;
      case ',':
        TESSERA_RETURN_IF_ERROR(read_descriptor(reader, frame));
        return frame;
      default:
        break;  // junk between blocks is skipped
    }
  }
  return truncated();
}

// The row of the frame that the n-th row of interlaced data belongs to, for all n.
std::vector<uint32_t> row_order(uint32_t height, bool interlaced) {
  std::vector<uint32_t> order;
  order.reserve(height);
  struct Pass {
    uint32_t first, step;
  };
  static constexpr Pass kInterlaced[] = {{0, 8}, {4, 8}, {2, 4}, {1, 2}};
  static constexpr Pass kPlain[] = {{0, 1}};
  for (const Pass& pass : interlaced ? std::span<const Pass>(kInterlaced) : std::span<const Pass>(kPlain))
    for (uint32_t y = pass.first; y < height; y += pass.step) order.push_back(y);
  return order;
}

}  // namespace

Result<ImageHeader> read_gif_header(ByteSpan bytes) {
  TESSERA_ASSIGN_OR_RETURN(const GifFrame frame, read_first_frame(bytes));
  return ImageHeader{.format = ImageFormat::kGif,
                     .width = frame.screen_width,
                     .height = frame.screen_height,
                     .working_bytes = int64_t{frame.width} * frame.height};  // its indices
}

Result<Image> decode_gif(ByteSpan bytes, const ImageHeader& header) {
  TESSERA_ASSIGN_OR_RETURN(const GifFrame frame, read_first_frame(bytes));
  TESSERA_ASSIGN_OR_RETURN(
      const std::vector<uint8_t> indices,
      decode_gif_lzw(frame.min_code_size, bytes.subspan(frame.data_at), size_t{frame.width} * frame.height));
  std::vector<uint32_t> data_row(frame.height);  // where each row of the frame lies in the data
  const std::vector<uint32_t> order = row_order(frame.height, frame.interlaced);
  for (uint32_t n = 0; n < frame.height; ++n) data_row[order[n]] = n;

  RowStore rows(static_cast<int>(header.width), static_cast<int>(header.height));
  std::vector<uint8_t> line(static_cast<size_t>(header.width));
  for (uint32_t y = 0; y < header.height; ++y) {
    std::fill(line.begin(), line.end(), frame.background);
    if (y >= frame.top && y < frame.top + frame.height) {
      const uint8_t* from = indices.data() + size_t{data_row[y - frame.top]} * frame.width;
      std::copy(from, from + frame.width, line.begin() + frame.left);
    }
    frame.palette.to_rgb(line, rows.append());
  }
  return rows.take();
}

}  // namespace tessera
