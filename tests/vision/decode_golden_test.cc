#include <gtest/gtest.h>

#include "tests/vision/picture_files.h"
#include "vision/tile.h"

namespace tessera {
namespace {
using testing::decode;
using testing::picture_goldens;
using testing::read_picture;
using testing::sha256_hex;

// Size, pixels and every tile of one golden entry (the picture's own, or its "exif_applied").
void expect_facts(const Image& image, const Json& facts, const std::string& name) {
  EXPECT_EQ(image.width, facts.find("width")->as_int64()) << name;
  EXPECT_EQ(image.height, facts.find("height")->as_int64()) << name;
  ASSERT_EQ(sha256_hex(image.rgb), facts.find("sha256_rgb")->as_string()) << name;
  for (const Json& tiling : facts.find("tilings")->as_array()) {
    const TilingOptions options{.image_size = static_cast<int>(tiling.find("image_size")->as_int64()),
                                .max_tiles = static_cast<int>(tiling.find("max_num")->as_int64())};
    const auto tiled = cut_tiles(image, options);
    ASSERT_TRUE(tiled.ok()) << name << ": " << tiled.status().message();
    const Json::Array& tiles = tiling.find("tiles")->as_array();
    EXPECT_EQ(tiled->grid.columns, tiling.find("grid")->as_array()[0].as_int64()) << name;
    EXPECT_EQ(tiled->grid.rows, tiling.find("grid")->as_array()[1].as_int64()) << name;
    ASSERT_EQ(tiled->grid.tiles, static_cast<int>(tiles.size())) << name;
    for (int t = 0; t < tiled->grid.tiles; ++t)
      EXPECT_EQ(sha256_hex(interleaved_tile(*tiled, t).rgb), tiles[t].as_string()) << name << " tile " << t;
  }
}

TEST(DecodeGolden, EveryPictureHasTheReferencesPixelsAndTiles) {
  int exact = 0, refused = 0;
  for (const Json& entry : picture_goldens().find("images")->as_array()) {
    const std::string name = entry.find("file")->as_string();
    if (!testing::has_fixture("images/" + name)) continue;
    const bool may_refuse = entry.find("may_refuse") || entry.find("tier")->as_string() == "extended";
    const std::string bytes = read_picture(name);
    const auto image = decode(bytes);
    if (!image.ok() && may_refuse) {
      ++refused;
      EXPECT_EQ(image.status().code(), StatusCode::kInvalidInput) << name;
      continue;
    }
    ASSERT_TRUE(image.ok()) << name << ": " << image.status().message();
    expect_facts(*image, entry, name);
    ++exact;
    if (const Json* applied = entry.find("exif_applied")) {
      const auto turned = decode(bytes, ExifOrientation::kApply);
      ASSERT_TRUE(turned.ok()) << name;
      expect_facts(*turned, *applied, name + " turned");
    } else {
      EXPECT_EQ(decode(bytes, ExifOrientation::kApply).value().rgb, image->rgb) << name;
    }
  }
  EXPECT_GE(exact, 20);
  std::printf("%d pictures exact, %d refused\n", exact, refused);
}

TEST(DecodeGolden, TheHeaderSaysSizeAndOrientationBeforeDecoding) {
  for (const Json& entry : picture_goldens().find("images")->as_array()) {
    const std::string name = entry.find("file")->as_string();
    if (!testing::has_fixture("images/" + name) || entry.find("format")->as_string() == "TIFF") continue;
    const std::string bytes = read_picture(name);
    const auto header = probe_image(testing::as_byte_span(bytes), {});
    ASSERT_TRUE(header.ok()) << name << ": " << header.status().message();
    EXPECT_EQ(header->width, entry.find("width")->as_int64()) << name;
    EXPECT_EQ(header->height, entry.find("height")->as_int64()) << name;
    const Json* orientation = entry.find("exif_orientation");
    EXPECT_EQ(header->orientation, orientation ? orientation->as_int64() : 1) << name;
  }
}

TEST(DecodeGolden, BrokenFilesAreRefusedWithOneLine) {
  for (const Json& entry : picture_goldens().find("bad")->as_array()) {
    const std::string name = entry.find("file")->as_string();
    if (!testing::has_fixture("images/" + name)) continue;
    const auto image = decode(read_picture(name));
    ASSERT_FALSE(image.ok()) << name;
    EXPECT_EQ(image.status().code(), StatusCode::kInvalidInput) << name;
    EXPECT_EQ(image.status().message().find('\n'), std::string::npos) << name;
    EXPECT_GT(image.status().message().size(), 30u) << name;
  }
}

}  // namespace
}  // namespace tessera
