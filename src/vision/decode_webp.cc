#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <webp/decode.h>
#include <webp/demux.h>

#include "vision/decoders.h"
#include "vision/orientation.h"
#include "vision/row_store.h"

namespace tessera {
namespace {

struct DemuxerDelete {
  void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};
using Demuxer = std::unique_ptr<WebPDemuxer, DemuxerDelete>;

Result<Demuxer> open(ByteSpan bytes) {
  const WebPData data{reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
  WebPDemuxState state = WEBP_DEMUX_PARSE_ERROR;
  Demuxer demuxer(WebPDemuxPartial(&data, &state));
  if (demuxer && state == WEBP_DEMUX_DONE) return demuxer;
  if (state == WEBP_DEMUX_PARSE_ERROR) return invalid_input("[decode] broken WebP: its chunks make no sense");
  return invalid_input("[decode] WebP data end early; the file is truncated");
}

std::string_view chunk(const WebPDemuxer* demuxer, const char* name, WebPChunkIterator& iterator) {
  if (!WebPDemuxGetChunk(demuxer, name, 1, &iterator)) return {};
  return {reinterpret_cast<const char*>(iterator.chunk.bytes), iterator.chunk.size};
}

template <class Parse>
std::optional<int> chunk_tag(const WebPDemuxer* demuxer, const char* name, Parse parse) {
  WebPChunkIterator iterator{};
  const std::string_view body = chunk(demuxer, name, iterator);
  const std::optional<int> tag = parse(std::as_bytes(std::span(body)));
  WebPDemuxReleaseChunkIterator(&iterator);
  return tag;
}

struct FrameIterator {
  WebPIterator value{};
  ~FrameIterator() { WebPDemuxReleaseIterator(&value); }
};

std::string status_text(VP8StatusCode status) {
  switch (status) {
    case VP8_STATUS_OUT_OF_MEMORY:
      return "out of memory";
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      return "it uses an unknown feature";
    case VP8_STATUS_SUSPENDED:
    case VP8_STATUS_NOT_ENOUGH_DATA:
      return "its data end early";
    default:
      return "its data are damaged";
  }
}

// Pixels of a frame, 3 or 4 bytes each. The memory is not touched before libwebp writes to it, so a claim
// that the data don't keep costs address space only.
struct Pixels {
  std::unique_ptr<uint8_t[]> bytes;
  int width = 0, height = 0, channels = 3;
};

// The frame's own pixels, and what libwebp keeps until it is through: a lossless picture as 32-bit words, an alpha plane.
int64_t frame_bytes(const WebPIterator& frame) {
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(frame.fragment.bytes, frame.fragment.size, &features) != VP8_STATUS_OK) return 0;  // decoding will say so
  constexpr int kLossless = 2;
  const int64_t own = features.has_alpha ? 4 : 3;
  const int64_t kept = features.format == kLossless ? 4 : features.has_alpha ? 1 : 0;
  return int64_t{features.width} * features.height * (own + kept);
}

Result<Pixels> decode_frame(const WebPIterator& frame) {
  WebPDecoderConfig config;
  if (!WebPInitDecoderConfig(&config))
    return internal_error("[decode] libwebp's version differs from its headers");
  const VP8StatusCode probed = WebPGetFeatures(frame.fragment.bytes, frame.fragment.size, &config.input);
  if (probed != VP8_STATUS_OK) return invalid_input("[decode] broken WebP: " + status_text(probed));
  if (config.input.width != frame.width || config.input.height != frame.height)
    return invalid_input("[decode] broken WebP: its sizes contradict each other");
  // With alpha the reference decodes four channels, which also fails where only the alpha is damaged.
  Pixels pixels{.width = frame.width, .height = frame.height, .channels = config.input.has_alpha ? 4 : 3};
  const size_t stride = static_cast<size_t>(frame.width) * pixels.channels;
  const size_t size = stride * frame.height;
  pixels.bytes.reset(new uint8_t[size]);
  config.output.colorspace = pixels.channels == 4 ? MODE_RGBA : MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA = {.rgba = pixels.bytes.get(), .stride = static_cast<int>(stride), .size = size};
  const VP8StatusCode status = WebPDecode(frame.fragment.bytes, frame.fragment.size, &config);
  WebPFreeDecBuffer(&config.output);
  if (status != VP8_STATUS_OK) return invalid_input("[decode] broken WebP: " + status_text(status));
  return pixels;
}

void drop_alpha(const uint8_t* from, int width, int channels, uint8_t* to) {
  if (channels == 3) {
    std::memcpy(to, from, size_t{3} * width);
    return;
  }
  for (int x = 0; x < width; ++x, from += 4, to += 3) std::memcpy(to, from, 3);
}

}  // namespace

Result<ImageHeader> read_webp_header(ByteSpan bytes) {
  TESSERA_ASSIGN_OR_RETURN(const Demuxer demuxer, open(bytes));
  OrientationTags tags;
  tags.exif = chunk_tag(demuxer.get(), "EXIF", exif_orientation_tag);
  tags.xmp = chunk_tag(demuxer.get(), "XMP ", xmp_orientation_tag);
  FrameIterator frame;
  const bool framed = WebPDemuxGetFrame(demuxer.get(), 1, &frame.value);
  return ImageHeader{.format = ImageFormat::kWebp,
                     .width = WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_WIDTH),
                     .height = WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_HEIGHT),
                     .orientation = tags.value(),
                     .working_bytes = framed ? frame_bytes(frame.value) : 0};
}

Result<Image> decode_webp(ByteSpan bytes, const ImageHeader& header) {
  TESSERA_ASSIGN_OR_RETURN(const Demuxer demuxer, open(bytes));
  FrameIterator frame;
  if (!WebPDemuxGetFrame(demuxer.get(), 1, &frame.value))
    return invalid_input("[decode] WebP holds no picture; the file is damaged");
  TESSERA_ASSIGN_OR_RETURN(const Pixels pixels, decode_frame(frame.value));

  // The first frame of an animation may be smaller than the canvas, which is black around it.
  const int left = frame.value.x_offset, top = frame.value.y_offset;
  if (left + int64_t{pixels.width} > header.width || top + int64_t{pixels.height} > header.height)
    return invalid_input("[decode] broken WebP: a frame lies outside of its canvas");
  RowStore rows(static_cast<int>(header.width), static_cast<int>(header.height));
  rows.expect_all();
  for (int y = 0; y < header.height; ++y) {
    uint8_t* out = rows.append();
    if (y < top || y >= top + pixels.height) continue;
    const size_t at = static_cast<size_t>(y - top) * pixels.width * pixels.channels;
    drop_alpha(pixels.bytes.get() + at, pixels.width, pixels.channels, out + size_t{3} * left);
  }
  return rows.take();
}

}  // namespace tessera
