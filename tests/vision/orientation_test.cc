#include "vision/orientation.h"

#include <gtest/gtest.h>

#include <string>

namespace tessera {
namespace {
using namespace std::string_literals;

ByteSpan bytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

TEST(Orientation, ExifInBothByteOrdersAndTypes) {
  const std::string little_short = "II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"s;
  const std::string big_short = "MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0"s;
  const std::string big_long = "MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x05"s;
  EXPECT_EQ(exif_orientation_tag(bytes(little_short)), 6);
  EXPECT_EQ(exif_orientation_tag(bytes("Exif\0\0"s + big_short)), 8);
  EXPECT_EQ(exif_orientation_tag(bytes(big_long)), 5);
}

TEST(Orientation, BrokenExifHasNone) {
  const std::string whole = "II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"s;
  for (size_t length = 0; length < whole.size(); ++length)
    EXPECT_EQ(exif_orientation_tag(bytes(whole.substr(0, length))), std::nullopt) << length;
  EXPECT_EQ(exif_orientation_tag(bytes("II*\0\xff\xff\xff\xff"s)), std::nullopt);
  EXPECT_EQ(exif_orientation_tag(bytes("XX*\0\x08\0\0\0\x01\0"s)), std::nullopt);
}

TEST(Orientation, XmpAsAttributeAndElement) {
  EXPECT_EQ(xmp_orientation_tag(bytes("<x tiff:Orientation=\"3\"/>"s)), 3);
  EXPECT_EQ(xmp_orientation_tag(bytes("<tiff:Orientation>7</tiff:Orientation>"s)), 7);
  EXPECT_EQ(xmp_orientation_tag(bytes("<tiff:OrientationX>7"s)), std::nullopt);
  EXPECT_EQ(xmp_orientation_tag(bytes("tiff:Orientation"s)), std::nullopt);
}

TEST(Orientation, ExifWinsAndOutOfRangeIsUpright) {
  EXPECT_EQ((OrientationTags{.exif = 6, .xmp = 3}.value()), 6);
  EXPECT_EQ((OrientationTags{.exif = {}, .xmp = 3}.value()), 3);
  EXPECT_EQ((OrientationTags{.exif = 9, .xmp = 3}.value()), 1);
  EXPECT_EQ(OrientationTags{}.value(), 1);
}

// The table of the EXIF standard: which stored pixel stands at (x, y).
TEST(Orientation, TurnsByTheTable) {
  const int w = 3, h = 2;
  Image image{.width = w, .height = h};
  for (int i = 0; i < w * h; ++i)
    for (int c = 0; c < 3; ++c) image.rgb.push_back(static_cast<uint8_t>(10 * i + c));
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const Image out = turn_upright(image, orientation);
    const bool swapped = orientation >= 5;
    ASSERT_EQ(out.width, swapped ? h : w);
    ASSERT_EQ(out.height, swapped ? w : h);
    for (int y = 0; y < out.height; ++y)
      for (int x = 0; x < out.width; ++x) {
        const int stored[8][2] = {{x, y}, {w - 1 - x, y}, {w - 1 - x, h - 1 - y}, {x, h - 1 - y},
                                  {y, x}, {y, h - 1 - x}, {w - 1 - y, h - 1 - x}, {w - 1 - y, x}};
        const auto [sx, sy] = stored[orientation - 1];
        EXPECT_EQ(out.row(y)[3 * x], 10 * (sy * w + sx)) << orientation << " at " << x << ", " << y;
      }
  }
}

}  // namespace
}  // namespace tessera
