#include <algorithm>
#include <csetjmp>
#include <cstdio>  // jpeglib.h needs FILE
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <jpeglib.h>

#include "vision/decoders.h"
#include "vision/orientation.h"
#include "vision/row_store.h"

namespace tessera {
namespace {

// Why libjpeg stopped. It ends a failed call by longjmp, so nothing here may own memory.
struct ErrorManager {
  jpeg_error_mgr base;
  std::jmp_buf leave;
  bool data_ended = false;
  bool too_many_scans = false;
  char message[JMSG_LENGTH_MAX] = "";
};

[[noreturn]] void leave_with_error(j_common_ptr info) {
  auto* errors = reinterpret_cast<ErrorManager*>(info->err);
  errors->base.format_message(info, errors->message);
  std::longjmp(errors->leave, 1);
}

void ignore_warning(j_common_ptr, int) {}

// The whole file is in memory, so being asked for more means that it ended early. The reference counts that
// as an error, where libjpeg would make up an EOI marker: even when only that is missing, since decoding the
// last row looks ahead.
boolean source_exhausted(j_decompress_ptr info) {
  auto* errors = reinterpret_cast<ErrorManager*>(info->err);
  errors->data_ended = true;
  std::longjmp(errors->leave, 1);
}

void skip_source(j_decompress_ptr info, long count) {
  if (count <= 0) return;
  if (static_cast<size_t>(count) > info->src->bytes_in_buffer) source_exhausted(info);
  info->src->next_input_byte += count;
  info->src->bytes_in_buffer -= static_cast<size_t>(count);
}

// A progressive file may repeat scans of next to no data, each a walk over the whole picture. Real encoders
// write about ten; these bounds leave 500 to a photograph and end a hostile file of the largest size in
// seconds.
constexpr int64_t kMaxScans = 500;
constexpr int64_t kMaxScanBlocks = 400'000'000;

int64_t block_count(const jpeg_decompress_struct& info) {
  int64_t blocks = 0;
  for (int i = 0; i < info.num_components; ++i)
    blocks += int64_t{info.comp_info[i].width_in_blocks} * info.comp_info[i].height_in_blocks;
  return blocks;
}

// A picture of several scans, progressive ones above all, is in memory as coefficients before its first row comes out.
int64_t coefficient_bytes(jpeg_decompress_struct& info) {
  constexpr int64_t kBlockBytes = 64 * sizeof(JCOEF);
  return jpeg_has_multiple_scans(&info) ? block_count(info) * kBlockBytes : 0;
}

struct ScanGuard {
  jpeg_progress_mgr base;
  int64_t blocks = 0;
};

void check_scans(j_common_ptr common) {
  auto* info = reinterpret_cast<j_decompress_ptr>(common);
  const int64_t scans = info->input_scan_number;
  if (scans <= kMaxScans && scans * reinterpret_cast<ScanGuard*>(info->progress)->blocks <= kMaxScanBlocks)
    return;
  auto* errors = reinterpret_cast<ErrorManager*>(common->err);
  errors->too_many_scans = true;
  std::longjmp(errors->leave, 1);
}

// One decompression; destroyed on every path by its owner's scope.
struct Decompression {
  jpeg_decompress_struct info{};
  jpeg_source_mgr source{};
  ErrorManager errors{};
  ScanGuard guard{};
  std::vector<uint8_t> cmyk;  // one row

  explicit Decompression(ByteSpan bytes) {
    info.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = leave_with_error;
    errors.base.emit_message = ignore_warning;
    source.next_input_byte = reinterpret_cast<const JOCTET*>(bytes.data());
    source.bytes_in_buffer = bytes.size();
    source.init_source = [](j_decompress_ptr) {};
    source.term_source = [](j_decompress_ptr) {};
    source.fill_input_buffer = source_exhausted;
    source.skip_input_data = skip_source;
    source.resync_to_restart = jpeg_resync_to_restart;
    guard.base.progress_monitor = check_scans;
  }
  ~Decompression() { jpeg_destroy_decompress(&info); }
  Decompression(const Decompression&) = delete;
  Decompression& operator=(const Decompression&) = delete;

  Status failure() const {
    if (errors.data_ended) return invalid_input("[decode] JPEG data end early; the file is truncated");
    if (errors.too_many_scans)
      return invalid_input(
          "[decode] JPEG of " + std::to_string(info.image_width) + " x " + std::to_string(info.image_height) +
          " has more than " +
          std::to_string(std::min(kMaxScans, kMaxScanBlocks / std::max<int64_t>(guard.blocks, 1))) +
          " scans; save it anew");
    return invalid_input(std::string("[decode] broken JPEG: ") + errors.message);
  }
};

// Orientation from the APP1 markers before the first scan.
int read_orientation(ByteSpan bytes) {
  OrientationTags tags;
  size_t at = 2;
  while (at + 4 <= bytes.size() && byte_at(bytes, at) == 0xff) {
    const uint32_t marker = byte_at(bytes, at + 1);
    if (marker == 0xff) {
      ++at;
      continue;
    }
    if (marker == 0xda || marker == 0xd9) break;
    const size_t length = u16be(bytes, at + 2);
    if (length < 2 || length > bytes.size() - at - 2) break;
    const ByteSpan body = bytes.subspan(at + 4, length - 2);
    constexpr char kXmp[] = "http://ns.adobe.com/xap/1.0/";
    if (marker == 0xe1 && !tags.exif && starts_with(body, "Exif\0\0", 6))
      tags.exif = exif_orientation_tag(body);
    if (marker == 0xe1 && !tags.xmp && starts_with(body, kXmp, sizeof kXmp))
      tags.xmp = xmp_orientation_tag(body);
    at += 2 + length;
  }
  return tags.value();
}

// Adobe's CMYK is stored inverted, and the reference takes every CMYK JPEG for that.
void inverted_cmyk_to_rgb(const uint8_t* cmyk, int width, uint8_t* rgb) {
  auto multiply = [](int a, int b) {
    const int t = a * b + 128;
    return ((t >> 8) + t) >> 8;
  };
  for (int x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
    const int light = cmyk[3];  // 255 - K
    for (int c = 0; c < 3; ++c)
      rgb[c] = static_cast<uint8_t>(std::clamp(light - multiply(255 - cmyk[c], light), 0, 255));
  }
}

// libjpeg allots a progressive picture's coefficients before it reads them, so a claim beyond a few
// megapixels is checked against the data: Huffman coding spends at least a bit on each block's DC value, and
// arithmetic coding, which has no such floor, is held to a 64th of a bit.
bool data_can_hold(const jpeg_decompress_struct& info, size_t bytes) {
  constexpr int64_t kFreeBlocks = 1 << 16;  // of 64 pixels
  const int64_t bits = static_cast<int64_t>(bytes) * 8;
  return block_count(info) <= std::max(info.arith_code ? bits * 64 : bits, kFreeBlocks);
}

// Runs one step; false when libjpeg left it by longjmp. What the step changes lies outside of its frame and
// of this one, and neither holds an object with a destructor, as longjmp demands.
[[gnu::noinline]] bool attempt(Decompression& jpeg, RowStore* rows, void (*step)(Decompression&, RowStore*)) {
  if (setjmp(jpeg.errors.leave)) return false;
  step(jpeg, rows);
  return true;
}

void start(Decompression& jpeg, RowStore*) {
  jpeg_create_decompress(&jpeg.info);
  jpeg.info.src = &jpeg.source;
  jpeg.info.progress = &jpeg.guard.base;
  jpeg_read_header(&jpeg.info, TRUE);
  jpeg.guard.blocks = block_count(jpeg.info);
}

void read_cmyk_rows(Decompression& jpeg, RowStore& rows) {
  jpeg.cmyk.resize(size_t{4} * jpeg.info.output_width);
  JSAMPROW row = jpeg.cmyk.data();
  while (jpeg.info.output_scanline < jpeg.info.output_height) {
    jpeg_read_scanlines(&jpeg.info, &row, 1);
    inverted_cmyk_to_rgb(row, static_cast<int>(jpeg.info.output_width), rows.append());
  }
}

void read_rgb_rows(Decompression& jpeg, RowStore& rows) {
  constexpr JDIMENSION kBatch =
      16;  // rows of zeroed memory at a time; libjpeg fills one or two of them a call
  jpeg_decompress_struct& info = jpeg.info;
  const size_t row_bytes = size_t{3} * info.output_width;
  while (info.output_scanline < info.output_height) {
    const JDIMENSION count = std::min(kBatch, info.output_height - info.output_scanline);
    uint8_t* first = rows.append(static_cast<int>(count));
    for (JDIMENSION done = 0; done < count;) {
      JSAMPROW pointers[kBatch];
      for (JDIMENSION r = done; r < count; ++r) pointers[r] = first + r * row_bytes;
      done += jpeg_read_scanlines(&info, pointers + done, count - done);
    }
  }
}

void read_rows(Decompression& jpeg, RowStore* rows) {
  const bool four = jpeg.info.num_components == 4;
  jpeg.info.out_color_space = four ? JCS_CMYK : JCS_RGB;
  jpeg_start_decompress(&jpeg.info);
  rows->expect_all();
  if (four)
    read_cmyk_rows(jpeg, *rows);
  else
    read_rgb_rows(jpeg, *rows);
}

void finish(Decompression& jpeg, RowStore*) {
  jpeg_finish_decompress(&jpeg.info);
}  // reads on to the EOI marker

}  // namespace

Result<ImageHeader> read_jpeg_header(ByteSpan bytes) {
  Decompression jpeg(bytes);
  if (!attempt(jpeg, nullptr, start)) return jpeg.failure();
  const int components = jpeg.info.num_components;
  if (components != 1 && components != 3 && components != 4)
    return invalid_input("[decode] JPEG with " + std::to_string(components) +
                         " components; 1 (gray), 3 (colour) and 4 (CMYK) are read");
  return ImageHeader{.format = ImageFormat::kJpeg,
                     .width = jpeg.info.image_width,
                     .height = jpeg.info.image_height,
                     .orientation = read_orientation(bytes),
                     .working_bytes = coefficient_bytes(jpeg.info)};
}

Result<Image> decode_jpeg(ByteSpan bytes, const ImageHeader& header) {
  Decompression jpeg(bytes);
  if (!attempt(jpeg, nullptr, start)) return jpeg.failure();
  if (!data_can_hold(jpeg.info, bytes.size()))
    return invalid_input("[decode] JPEG of " + std::to_string(bytes.size()) + " bytes cannot hold " +
                         std::to_string(header.width) + " x " + std::to_string(header.height) +
                         " pixels; the file is truncated or damaged");
  RowStore rows(static_cast<int>(header.width), static_cast<int>(header.height));
  if (!attempt(jpeg, &rows, read_rows)) return jpeg.failure();
  // Data that end after the last row are no error to the reference; what libjpeg calls an error there is.
  if (!attempt(jpeg, nullptr, finish) && !jpeg.errors.data_ended) return jpeg.failure();
  return rows.take();
}

}  // namespace tessera
