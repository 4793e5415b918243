// What a header says of the memory that decoding takes: pictures wait for each other by it.
#include <gtest/gtest.h>

#include "tests/vision/picture_files.h"

namespace tessera {
namespace {

int64_t working_bytes(const std::string& name) {
  const std::string bytes = testing::read_picture(name);
  const auto header = probe_image(testing::as_byte_span(bytes), {});
  EXPECT_TRUE(header.ok()) << name << ": " << header.status().message();
  return header.ok() ? header->working_bytes : -1;
}

TEST(DecodingMemory, RowsComeOutAsTheyAreRead) {
  for (const char* name : {"jpeg-420.jpg", "jpeg-444.jpg", "bmp-24.bmp"}) EXPECT_EQ(working_bytes(name), 0) << name;
}

TEST(DecodingMemory, AProgressiveJpegIsHeldAsCoefficients) {
  // 640 x 427 with halved colours: 80 x 54 and twice 40 x 27 blocks of 64 coefficients of 16 bits.
  EXPECT_EQ(working_bytes("jpeg-progressive.jpg"), (80 * 54 + 2 * 40 * 27) * 64 * 2);
}

TEST(DecodingMemory, AWebpIsDecodedBesideThePicture) {
  EXPECT_EQ(working_bytes("webp-lossy.webp"), 400 * 300 * 3);
  EXPECT_EQ(working_bytes("webp-lossy-alpha.webp"), 160 * 120 * (4 + 1));
  EXPECT_EQ(working_bytes("webp-lossless.webp"), 150 * 100 * (3 + 4));
  EXPECT_EQ(working_bytes("webp-lossless-alpha.webp"), 160 * 120 * (4 + 4));
}

TEST(DecodingMemory, AGifIsHeldAsIndices) { EXPECT_EQ(working_bytes("gif-static.gif"), 180 * 135); }

TEST(DecodingMemory, ATurnedPictureIsThereTwice) {
  const ImageHeader upright{.width = 100, .height = 50, .working_bytes = 700};
  EXPECT_EQ(upright.decoding_bytes(ExifOrientation::kApply), 15000 + 700);
  const ImageHeader lying{.width = 100, .height = 50, .orientation = 6, .working_bytes = 700};
  EXPECT_EQ(lying.decoding_bytes(ExifOrientation::kIgnore), 15000 + 700);
  EXPECT_EQ(lying.decoding_bytes(ExifOrientation::kApply), 30000);
}

}  // namespace
}  // namespace tessera
