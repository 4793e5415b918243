#include "vision/png_writer.h"

#include <vector>

#include <zlib.h>

#include "core/check.h"

namespace tessera {
namespace {

void append_u32(std::string& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xff);
}

void append_chunk(std::string& out, const char* type, const std::string& body) {
  append_u32(out, static_cast<uint32_t>(body.size()));
  const size_t begin = out.size();
  out.append(type, 4).append(body);
  append_u32(out, static_cast<uint32_t>(
                      crc32_z(0, reinterpret_cast<const Bytef*>(out.data()) + begin, out.size() - begin)));
}

// zlib's counters are `unsigned`, so rows go in one by one and the output leaves in blocks.
class Deflater {
 public:
  Deflater() {
    constexpr int kFast = 3;  // of 1..9: tiles are looked at, not archived
    TESSERA_CHECK(deflateInit(&zlib_, kFast) == Z_OK, "zlib did not start");
  }
  ~Deflater() { deflateEnd(&zlib_); }
  Deflater(const Deflater&) = delete;
  Deflater& operator=(const Deflater&) = delete;

  void add(const std::vector<uint8_t>& bytes, int flush) {
    zlib_.next_in = const_cast<Bytef*>(bytes.data());
    zlib_.avail_in = static_cast<uInt>(bytes.size());
    do {
      zlib_.next_out = block_;
      zlib_.avail_out = sizeof block_;
      const int code = deflate(&zlib_, flush);
      TESSERA_CHECK(code == Z_OK || code == Z_STREAM_END || code == Z_BUF_ERROR, "zlib failed");
      out_.append(reinterpret_cast<const char*>(block_), sizeof block_ - zlib_.avail_out);
    } while (zlib_.avail_out == 0);
  }
  const std::string& finish() {
    add({}, Z_FINISH);
    return out_;
  }

 private:
  z_stream zlib_{};
  Bytef block_[1 << 16];
  std::string out_;
};

}  // namespace

std::string encode_png(const Image& image) {
  TESSERA_CHECK(image.width >= 1 && image.height >= 1, "a PNG needs at least one pixel");
  std::string header;
  append_u32(header, static_cast<uint32_t>(image.width));
  append_u32(header, static_cast<uint32_t>(image.height));
  header.append({8, 2, 0, 0, 0});  // 8 bits, RGB, deflate, adaptive filters, not interlaced

  Deflater deflater;
  const std::vector<uint8_t> zeros(image.row_bytes());
  std::vector<uint8_t> line(image.row_bytes() + 1);
  constexpr uint8_t kUp = 2;  // each row as the difference to the one above: cheap, and photographs shrink
  for (int y = 0; y < image.height; ++y) {
    const uint8_t* row = image.row(y);
    const uint8_t* above = y > 0 ? image.row(y - 1) : zeros.data();
    line[0] = kUp;
    for (size_t i = 0; i < image.row_bytes(); ++i) line[i + 1] = static_cast<uint8_t>(row[i] - above[i]);
    deflater.add(line, Z_NO_FLUSH);
  }
  std::string out("\x89PNG\r\n\x1a\n", 8);
  append_chunk(out, "IHDR", header);
  append_chunk(out, "IDAT", deflater.finish());
  append_chunk(out, "IEND", {});
  return out;
}

}  // namespace tessera
