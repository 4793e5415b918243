#include "vision/decode.h"

#include <algorithm>
#include <optional>
#include <string>

#include "vision/decoders.h"
#include "vision/orientation.h"

namespace tessera {
namespace {

struct Decoder {
  Result<ImageHeader> (*read_header)(ByteSpan);
  Result<Image> (*decode)(ByteSpan, const ImageHeader&);
};

Decoder decoder_of(ImageFormat format) {
  switch (format) {
    case ImageFormat::kJpeg:
      return {read_jpeg_header, decode_jpeg};
    case ImageFormat::kPng:
      return {read_png_header, decode_png};
    case ImageFormat::kWebp:
      return {read_webp_header, decode_webp};
    case ImageFormat::kGif:
      return {read_gif_header, decode_gif};
    case ImageFormat::kBmp:
      return {read_bmp_header, decode_bmp};
    case ImageFormat::kPnm:
      return {read_pnm_header, decode_pnm};
  }
  check_failed(__FILE__, __LINE__, "format", "unknown ImageFormat");
}

std::optional<ImageFormat> sniff(ByteSpan b) {
  if (starts_with(b, "\xff\xd8\xff", 3)) return ImageFormat::kJpeg;
  if (starts_with(b, "\x89PNG\r\n\x1a\n", 8)) return ImageFormat::kPng;
  if (starts_with(b, "RIFF", 4) && b.size() >= 12 && starts_with(b.subspan(8), "WEBP", 4))
    return ImageFormat::kWebp;
  if (starts_with(b, "GIF87a", 6) || starts_with(b, "GIF89a", 6)) return ImageFormat::kGif;
  if (starts_with(b, "BM", 2)) return ImageFormat::kBmp;
  if (b.size() >= 3 && byte_at(b, 0) == 'P' && byte_at(b, 1) >= '1' && byte_at(b, 1) <= '6' &&
      (byte_at(b, 2) <= ' ' || byte_at(b, 2) == '#'))
    return ImageFormat::kPnm;
  return std::nullopt;
}

// What the data looks like where it is no picture that we read, to spare the person a guess.
std::string describe_unknown(ByteSpan b) {
  if (starts_with(b, "II*\0", 4) || starts_with(b, "MM\0*", 4))
    return "this is TIFF, which is not read; convert it to PNG";
  if (b.size() >= 12 && starts_with(b.subspan(4), "ftyp", 4))
    return "this is AVIF, HEIC or a video; convert it to PNG or JPEG";
  if (starts_with(b, "\x89PNG", 4)) return "the PNG signature is incomplete or damaged";
  auto visible = std::find_if(b.begin(), b.end(), [](std::byte c) { return static_cast<uint8_t>(c) > ' '; });
  if (visible != b.end() && *visible == std::byte{'<'})
    return "this is text such as HTML or SVG, not a raster picture";
  std::string hex;
  for (size_t i = 0; i < std::min<size_t>(b.size(), 8); ++i) {
    constexpr char kDigits[] = "0123456789abcdef";
    hex += {kDigits[byte_at(b, i) >> 4], kDigits[byte_at(b, i) & 15]};
  }
  return "its first bytes are " + hex;
}

Status check_limits(const ImageHeader& header, const DecodeLimits& limits) {
  const std::string size = std::string("[decode] ") + image_format_name(header.format) + " of " +
                           std::to_string(header.width) + " x " + std::to_string(header.height);
  if (header.width < 1 || header.height < 1)
    return invalid_input(size + ": a side is 0; the picture is damaged");
  const int64_t max_side = std::min<int64_t>(limits.max_side, INT32_MAX);
  if (header.width > max_side || header.height > max_side)
    return invalid_input(size + ": a side exceeds " + std::to_string(max_side) +
                         " pixels; shrink it or raise --max-image-side");
  if (header.width * header.height > limits.max_pixels)
    return invalid_input(size + " has " + std::to_string(header.width * header.height) +
                         " pixels; the limit is " + std::to_string(limits.max_pixels) +
                         "; shrink it or raise --max-image-pixels");
  return {};
}

}  // namespace

const char* image_format_name(ImageFormat format) {
  switch (format) {
    case ImageFormat::kJpeg:
      return "JPEG";
    case ImageFormat::kPng:
      return "PNG";
    case ImageFormat::kWebp:
      return "WebP";
    case ImageFormat::kGif:
      return "GIF";
    case ImageFormat::kBmp:
      return "BMP";
    case ImageFormat::kPnm:
      return "PNM";
  }
  return "?";
}

Result<ImageHeader> probe_image(std::span<const std::byte> encoded, const DecodeLimits& limits) {
  if (encoded.empty()) return invalid_input("[decode] the picture is empty (0 bytes)");
  if (encoded.size() > limits.max_bytes)
    return invalid_input("[decode] the picture has " + std::to_string(encoded.size()) +
                         " bytes; the limit is " + std::to_string(limits.max_bytes) +
                         "; raise --max-image-bytes");
  const auto format = sniff(encoded);
  if (!format)
    return invalid_input("[decode] not a JPEG, PNG, WebP, GIF, BMP or PNM picture: " +
                         describe_unknown(encoded));
  TESSERA_ASSIGN_OR_RETURN(ImageHeader header, decoder_of(*format).read_header(encoded));
  TESSERA_RETURN_IF_ERROR(check_limits(header, limits));
  return header;
}

Result<Image> decode_image(std::span<const std::byte> encoded, const DecodeLimits& limits,
                           ExifOrientation exif_orientation) {
  TESSERA_ASSIGN_OR_RETURN(const ImageHeader header, probe_image(encoded, limits));
  TESSERA_ASSIGN_OR_RETURN(Image image, decoder_of(header.format).decode(encoded, header));
  if (exif_orientation == ExifOrientation::kApply) return turn_upright(std::move(image), header.orientation);
  return image;
}

}  // namespace tessera
