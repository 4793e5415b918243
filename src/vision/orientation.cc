#include "vision/orientation.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "core/check.h"

namespace tessera {

std::optional<int> exif_orientation_tag(ByteSpan exif) {
  if (starts_with(exif, "Exif\0\0", 6)) exif = exif.subspan(6);
  if (exif.size() < 8) return std::nullopt;
  const bool little = starts_with(exif, "II*\0", 4);
  if (!little && !starts_with(exif, "MM\0*", 4)) return std::nullopt;
  auto u16 = [&](size_t at) { return little ? u16le(exif, at) : u16be(exif, at); };
  auto u32 = [&](size_t at) { return little ? u32le(exif, at) : u32be(exif, at); };

  const size_t directory = u32(4);
  if (directory > exif.size() - 2) return std::nullopt;
  const size_t entries = std::min<size_t>(u16(directory), (exif.size() - directory - 2) / 12);
  for (size_t i = 0; i < entries; ++i) {
    const size_t entry = directory + 2 + 12 * i;
    if (u16(entry) != 0x0112 || u32(entry + 4) != 1) continue;
    constexpr uint32_t kShort = 3, kLong = 4;
    if (u16(entry + 2) == kShort) return static_cast<int>(u16(entry + 8));
    if (u16(entry + 2) == kLong) return static_cast<int>(std::min<uint32_t>(u32(entry + 8), 9));
  }
  return std::nullopt;
}

std::optional<int> xmp_orientation_tag(ByteSpan xmp) {
  const std::string_view text(reinterpret_cast<const char*>(xmp.data()), xmp.size());
  constexpr std::string_view kName = "tiff:Orientation";
  for (size_t at = text.find(kName); at != text.npos; at = text.find(kName, at + 1)) {
    std::string_view rest = text.substr(at + kName.size());
    if (rest.substr(0, 2) == "=\"")
      rest.remove_prefix(2);
    else if (rest.substr(0, 1) == ">")
      rest.remove_prefix(1);
    else
      continue;
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
  }
  return std::nullopt;
}

Image turn_upright(Image image, int orientation) {
  TESSERA_CHECK(orientation >= 1 && orientation <= 8, "orientation out of range");
  if (orientation == 1) return image;
  // Values 5..8 swap the axes; then the stored x or y runs backwards.
  const bool swapped = orientation >= 5;
  const bool mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const int w = image.width, h = image.height;
  Image out{.width = swapped ? h : w, .height = swapped ? w : h};
  out.rgb.resize(image.rgb.size());
  for (int y = 0; y < out.height; ++y) {
    uint8_t* to = out.row(y);
    for (int x = 0; x < out.width; ++x, to += 3) {
      const int along_x = swapped ? y : x, along_y = swapped ? x : y;
      const uint8_t* from = image.row(mirror_y ? h - 1 - along_y : along_y) +
                            size_t{3} * (mirror_x ? w - 1 - along_x : along_x);
      std::copy(from, from + 3, to);
    }
  }
  return out;
}

}  // namespace tessera
