#include <array>
#include <cstring>
#include <string>
#include <vector>

#include <zlib.h>

#include "vision/decoders.h"
#include "vision/orientation.h"
#include "vision/row_store.h"

namespace tessera {
namespace {

enum ColourType { kGray = 0, kRgb = 2, kPalette = 3, kGrayAlpha = 4, kRgba = 6 };

struct PngInfo {
  uint32_t width = 0, height = 0;
  int depth = 0;   // bits a sample
  int colour = 0;  // ColourType
  bool interlaced = false;
  std::array<std::array<uint8_t, 3>, 256> palette{};  // entries that PLTE lacks are black
  size_t data_at = 0;                                 // the first IDAT chunk
  OrientationTags orientation;

  int samples() const {
    return colour == kGray || colour == kPalette ? 1 : colour == kGrayAlpha ? 2 : colour == kRgb ? 3 : 4;
  }
  int bits_per_pixel() const { return samples() * depth; }
  size_t row_bytes(uint32_t pixels) const { return (size_t{pixels} * bits_per_pixel() + 7) / 8; }
};

struct Chunk {
  char type[5] = "";
  ByteSpan body;
  uint32_t crc = 0;
  bool whole = false;  // body and CRC are there in full
  bool is(const char* name) const { return std::memcmp(type, name, 4) == 0; }
};

// The next chunk, possibly cut short by the end of the file.
Chunk next_chunk(ByteReader& reader) {
  Chunk chunk;
  const ByteSpan head = reader.take(8);
  if (reader.failed()) return chunk;
  std::memcpy(chunk.type, head.data() + 4, 4);
  chunk.body = reader.take(u32be(head, 0));
  const ByteSpan crc = reader.take(4);
  chunk.whole = !reader.failed();
  if (chunk.whole) chunk.crc = u32be(crc, 0);
  return chunk;
}

bool valid_type(const char* type) {
  for (int i = 0; i < 4; ++i) {
    const unsigned char c = static_cast<unsigned char>(type[i]);
    if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'))
      return false;
  }
  return true;
}

uint32_t chunk_crc(const Chunk& chunk) {
  uLong crc = crc32(0, reinterpret_cast<const Bytef*>(chunk.type), 4);
  if (!chunk.body.empty())
    crc = crc32_z(crc, reinterpret_cast<const Bytef*>(chunk.body.data()), chunk.body.size());
  return static_cast<uint32_t>(crc);
}

bool valid_depth(int colour, int depth) {
  switch (colour) {
    case kGray:
      return depth == 1 || depth == 2 || depth == 4 || depth == 8 || depth == 16;
    case kPalette:
      return depth == 1 || depth == 2 || depth == 4 || depth == 8;
    case kRgb:
    case kGrayAlpha:
    case kRgba:
      return depth == 8 || depth == 16;
    default:
      return false;
  }
}

Status read_ihdr(ByteSpan body, PngInfo& info) {
  if (body.size() < 13)
    return invalid_input("[decode] PNG chunk IHDR has fewer than 13 bytes; the file is damaged");
  info.width = u32be(body, 0);
  info.height = u32be(body, 4);
  info.depth = static_cast<int>(byte_at(body, 8));
  info.colour = static_cast<int>(byte_at(body, 9));
  info.interlaced = byte_at(body, 12) != 0;
  if (!valid_depth(info.colour, info.depth))
    return invalid_input("[decode] PNG colour type " + std::to_string(info.colour) + " with " +
                         std::to_string(info.depth) + " bits a sample does not exist; the file is damaged");
  if (byte_at(body, 11) != 0)
    return invalid_input("[decode] PNG filter method " + std::to_string(byte_at(body, 11)) +
                         "; only 0 exists");
  return {};
}

Status read_plte(ByteSpan body, PngInfo& info) {
  if (body.size() / 3 > 256)
    return invalid_input("[decode] PNG palette of " + std::to_string(body.size() / 3) +
                         " colours; at most 256");
  info.palette = {};
  for (size_t i = 0; i < body.size() / 3; ++i)
    for (size_t c = 0; c < 3; ++c) info.palette[i][c] = static_cast<uint8_t>(body[3 * i + c]);
  return {};
}

void read_metadata(const Chunk& chunk, OrientationTags& tags) {
  constexpr char kXmp[] = "XML:com.adobe.xmp";
  if (chunk.is("eXIf") && !tags.exif) tags.exif = exif_orientation_tag(chunk.body);
  if (chunk.is("iTXt") && !tags.xmp && starts_with(chunk.body, kXmp, sizeof kXmp))
    tags.xmp = xmp_orientation_tag(chunk.body);
}

// Everything before the picture's data has to be whole and to match its CRC; after it, only metadata is
// looked for, as far as the chunks go.
Result<PngInfo> read_info(ByteSpan bytes) {
  PngInfo info;
  ByteReader reader(bytes);
  reader.take(8);
  for (bool header_seen = false;;) {
    const size_t at = reader.position();
    const Chunk chunk = next_chunk(reader);
    if (chunk.type[0] == '\0' && !chunk.whole)
      return invalid_input("[decode] PNG ends before its picture data; the file is truncated");
    if (!valid_type(chunk.type))
      return invalid_input("[decode] PNG has no chunk at byte " + std::to_string(at) +
                           "; the file is damaged");
    if (chunk.is("IDAT")) {
      if (!header_seen)
        return invalid_input("[decode] PNG has picture data before its header; the file is damaged");
      info.data_at = at;
      break;
    }
    if (!chunk.whole)
      return invalid_input(std::string("[decode] PNG ends in chunk ") + chunk.type +
                           "; the file is truncated");
    if (chunk.crc != chunk_crc(chunk))
      return invalid_input(std::string("[decode] PNG chunk ") + chunk.type +
                           " does not match its checksum; the file is damaged");
    if (chunk.is("IHDR")) TESSERA_RETURN_IF_ERROR(read_ihdr(chunk.body, info));
    if (chunk.is("IHDR")) header_seen = true;
    if (chunk.is("PLTE")) TESSERA_RETURN_IF_ERROR(read_plte(chunk.body, info));
    if (chunk.is("IEND")) return invalid_input("[decode] PNG holds no picture data; the file is damaged");
    read_metadata(chunk, info.orientation);
  }
  while (!reader.at_end()) {
    const Chunk chunk = next_chunk(reader);
    if (!chunk.whole) break;
    read_metadata(chunk, info.orientation);
  }
  return info;
}

// The zlib stream of consecutive IDAT chunks, whose CRCs the reference does not look at.
class DataStream {
 public:
  explicit DataStream(ByteSpan from_first_idat) : reader_(from_first_idat) {}
  ~DataStream() {
    if (started_) inflateEnd(&zlib_);
  }
  DataStream(const DataStream&) = delete;
  DataStream& operator=(const DataStream&) = delete;

  Status start() {
    if (inflateInit(&zlib_) != Z_OK) return internal_error("[decode] zlib did not start");
    started_ = true;
    return {};
  }

  // Fills `out` with the next bytes of the stream.
  Status read(std::span<uint8_t> out) {
    zlib_.next_out = out.data();
    zlib_.avail_out = static_cast<uInt>(out.size());
    while (zlib_.avail_out > 0) {
      if (zlib_.avail_in == 0 && !feed())
        return invalid_input("[decode] PNG picture data end early; the file is truncated");
      const int code = inflate(&zlib_, Z_NO_FLUSH);
      if (code == Z_STREAM_END && zlib_.avail_out > 0)
        return invalid_input("[decode] PNG picture data hold too few rows; the file is damaged");
      if (code == Z_STREAM_END) ended_ = true;
      if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR) return damaged();
    }
    return {};
  }

  // After the last row: the stream's own checksum must be right where it is there; it may be missing.
  Status finish() {
    while (!ended_) {
      if (zlib_.avail_in == 0 && !feed()) return {};
      const uInt before = zlib_.avail_in;
      const int code = inflate(&zlib_, Z_NO_FLUSH);
      if (code == Z_STREAM_END) return {};
      if (code != Z_OK && code != Z_BUF_ERROR) return damaged();
      if (zlib_.avail_in == before) return {};  // more rows than the picture has
    }
    return {};
  }

 private:
  Status damaged() const {
    return invalid_input(std::string("[decode] PNG picture data are damaged: ") +
                         (zlib_.msg ? zlib_.msg : "no zlib stream"));
  }

  bool feed() {
    while (chunk_.empty()) {
      if (reader_.left() == 0) return false;
      const Chunk chunk = next_chunk(reader_);
      if (!chunk.is("IDAT")) return false;
      chunk_ = chunk.body;
    }
    // zlib counts in 32 bits; chunks may not.
    const ByteSpan part = chunk_.first(std::min<size_t>(chunk_.size(), size_t{1} << 30));
    chunk_ = chunk_.subspan(part.size());
    zlib_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(part.data()));
    zlib_.avail_in = static_cast<uInt>(part.size());
    return true;
  }

  ByteReader reader_;
  ByteSpan chunk_;
  z_stream zlib_{};
  bool started_ = false;
  bool ended_ = false;
};

uint8_t paeth(int a, int b, int c) {
  const int pa = std::abs(b - c), pb = std::abs(a - c), pc = std::abs(a + b - 2 * c);
  return static_cast<uint8_t>(pa <= pb && pa <= pc ? a : pb <= pc ? b : c);
}

// Undoes a row's filter in place. `above` is the finished row before, zeros for the first of a pass; `step`
// the bytes between a value and its left neighbour.
Status unfilter(int filter, std::span<uint8_t> row, const uint8_t* above, size_t step) {
  const size_t n = row.size();
  uint8_t* p = row.data();
  switch (filter) {
    case 0:
      return {};
    case 1:
      for (size_t i = step; i < n; ++i) p[i] = static_cast<uint8_t>(p[i] + p[i - step]);
      return {};
    case 2:
      for (size_t i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(p[i] + above[i]);
      return {};
    case 3:
      for (size_t i = 0; i < n; ++i)
        p[i] = static_cast<uint8_t>(p[i] + ((i < step ? 0 : p[i - step]) + above[i]) / 2);
      return {};
    case 4:
      for (size_t i = 0; i < std::min(step, n); ++i) p[i] = static_cast<uint8_t>(p[i] + above[i]);
      for (size_t i = step; i < n; ++i)
        p[i] = static_cast<uint8_t>(p[i] + paeth(p[i - step], above[i], above[i - step]));
      return {};
    default:
      return invalid_input("[decode] PNG row with filter " + std::to_string(filter) +
                           "; 0..4 exist; the file is damaged");
  }
}

// A row of samples as RGB. 16-bit samples keep their high byte, except plain gray, which the reference clips.
void row_to_rgb(const PngInfo& info, const uint8_t* row, uint32_t width, uint8_t* rgb) {
  const size_t sample_bytes = info.depth == 16 ? 2 : 1;
  if (info.colour == kRgb || info.colour == kRgba) {
    const size_t step = sample_bytes * info.samples();
    if (step == 3) {
      std::memcpy(rgb, row, size_t{3} * width);
      return;
    }
    for (uint32_t x = 0; x < width; ++x, row += step, rgb += 3)
      for (size_t c = 0; c < 3; ++c) rgb[c] = row[c * sample_bytes];
    return;
  }
  const int mask = (1 << std::min(info.depth, 8)) - 1;
  const int gray_scale = 255 / mask;
  const size_t step = sample_bytes * info.samples();
  for (uint32_t x = 0; x < width; ++x, rgb += 3) {
    int value;
    if (info.depth < 8) {
      const uint32_t bit = x * info.depth;
      value = row[bit / 8] >> (8 - info.depth - bit % 8) & mask;
    } else {
      value = row[x * step];
      if (info.colour == kGray && info.depth == 16 && value != 0)
        value = 255;
      else if (info.colour == kGray && info.depth == 16)
        value = row[x * step + 1];
    }
    if (info.colour == kPalette) {
      std::memcpy(rgb, info.palette[value].data(), 3);
    } else {
      std::memset(rgb, value * gray_scale, 3);
    }
  }
}

// Reads the rows of one pass, in order, and hands each to `accept(y, row)`.
template <class Accept>
Status read_pass(DataStream& data, const PngInfo& info, uint32_t width, uint32_t height, Accept accept) {
  const size_t bytes = info.row_bytes(width);
  std::vector<uint8_t> current(bytes + 1), above(bytes + 1);  // the filter's byte comes first
  const size_t step = std::max(info.bits_per_pixel() / 8, 1);
  for (uint32_t y = 0; y < height; ++y) {
    TESSERA_RETURN_IF_ERROR(data.read(current));
    TESSERA_RETURN_IF_ERROR(unfilter(current[0], std::span(current).subspan(1), above.data() + 1, step));
    accept(y, current.data() + 1);
    std::swap(current, above);
  }
  return {};
}

struct Adam7Pass {
  uint32_t x0, y0, dx, dy;
  uint32_t columns(uint32_t width) const { return width <= x0 ? 0 : (width - x0 + dx - 1) / dx; }
  uint32_t rows(uint32_t height) const { return height <= y0 ? 0 : (height - y0 + dy - 1) / dy; }
};
constexpr Adam7Pass kAdam7[] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                                {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};

// Deflate gives at most about 1032 bytes for one. An interlaced picture is whole in memory from its first
// pass on, so what it claims is held against that first.
Status check_interlaced_claim(const PngInfo& info, size_t file_bytes) {
  uint64_t needed = 0;
  for (const Adam7Pass& pass : kAdam7)
    needed += uint64_t{info.row_bytes(pass.columns(info.width))} * pass.rows(info.height);
  if (needed / 1040 <= file_bytes) return {};
  return invalid_input("[decode] PNG of " + std::to_string(file_bytes) + " bytes cannot hold " +
                       std::to_string(info.width) + " x " + std::to_string(info.height) +
                       " pixels; the file is truncated or damaged");
}

Status read_interlaced(DataStream& data, const PngInfo& info, RowStore& rows) {
  std::vector<uint8_t> pass_row(size_t{3} * info.width);
  uint8_t* const rgb = rows.append(static_cast<int>(info.height));
  for (const Adam7Pass& pass : kAdam7) {
    const uint32_t columns = pass.columns(info.width);
    if (columns == 0) continue;
    TESSERA_RETURN_IF_ERROR(
        read_pass(data, info, columns, pass.rows(info.height), [&](uint32_t y, const uint8_t* row) {
          row_to_rgb(info, row, columns, pass_row.data());
          uint8_t* out = rgb + (size_t{pass.y0 + y * pass.dy} * info.width + pass.x0) * 3;
          for (uint32_t x = 0; x < columns; ++x)
            std::memcpy(out + size_t{3} * x * pass.dx, &pass_row[size_t{3} * x], 3);
        }));
  }
  return {};
}

}  // namespace

Result<ImageHeader> read_png_header(ByteSpan bytes) {
  TESSERA_ASSIGN_OR_RETURN(const PngInfo info, read_info(bytes));
  return ImageHeader{.format = ImageFormat::kPng,
                     .width = info.width,
                     .height = info.height,
                     .orientation = info.orientation.value()};
}

Result<Image> decode_png(ByteSpan bytes, const ImageHeader& header) {
  TESSERA_ASSIGN_OR_RETURN(const PngInfo info, read_info(bytes));
  if (info.interlaced) TESSERA_RETURN_IF_ERROR(check_interlaced_claim(info, bytes.size()));
  DataStream data(bytes.subspan(info.data_at));
  TESSERA_RETURN_IF_ERROR(data.start());
  RowStore rows(static_cast<int>(header.width), static_cast<int>(header.height));
  if (info.interlaced) {
    TESSERA_RETURN_IF_ERROR(read_interlaced(data, info, rows));
  } else {
    TESSERA_RETURN_IF_ERROR(read_pass(data, info, info.width, info.height, [&](uint32_t, const uint8_t* row) {
      row_to_rgb(info, row, info.width, rows.append());
    }));
  }
  TESSERA_RETURN_IF_ERROR(data.finish());
  return rows.take();
}

}  // namespace tessera
