#include "vision/resize.h"

#include <gtest/gtest.h>

#include <random>

#include "vision/tile.h"

namespace tessera {
namespace {

Image random_picture(int width, int height, std::mt19937& random) {
  Image image{.width = width, .height = height};
  image.rgb.resize(image.row_bytes() * height);
  for (uint8_t& value : image.rgb)  // one in four at an end of the range: overshoot has to be clamped
    value = static_cast<uint8_t>(random() & 3 ? random() : random() & 1 ? 255 : 0);
  return image;
}

class ResizePath : public ::testing::TestWithParam<ResizeIsa> {
 protected:
  void SetUp() override {
    if (!resize_isa_available(GetParam())) GTEST_SKIP() << "this CPU has no " << resize_isa_name(GetParam());
  }
};

TEST_P(ResizePath, EqualsThePlainPathForManySizes) {
  std::mt19937 random(1);
  auto side = [&](int most) { return 1 + static_cast<int>(random() % most); };
  for (int i = 0; i < 150; ++i) {
    const int width = side(i % 3 ? 90 : 700), height = side(i % 5 ? 90 : 700) + (i % 13 ? 0 : 2000);
    const int target_width = i % 7 ? side(i % 2 ? 70 : 500) : width;
    const int target_height = i % 11 ? side(i % 4 ? 70 : 500) : height;
    const Image image = random_picture(width, height, random);
    ASSERT_EQ(resize_bicubic(image, target_width, target_height, GetParam()).rgb,
              resize_bicubic(image, target_width, target_height, ResizeIsa::kPlain).rgb)
        << width << " x " << height << " to " << target_width << " x " << target_height;
  }
}

TEST_P(ResizePath, EverySmallSizeAroundAVectorsWidth) {
  std::mt19937 random(2);
  for (int width : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65})
    for (int target : {1, 3, 4, 5, 16, 17, 33, 65}) {
      const Image image = random_picture(width, 1 + static_cast<int>(random() % 40), random);
      ASSERT_EQ(resize_bicubic(image, target, 19, GetParam()).rgb,
                resize_bicubic(image, target, 19, ResizeIsa::kPlain).rgb)
          << width << " to " << target;
    }
}

TEST_P(ResizePath, TilesEqualThoseOfThePlainPath) {
  std::mt19937 random(3);
  // Wide, tall enough that the thumbnail's passes change order, exactly a grid, tiny, one tile.
  for (auto [width, height] : {std::pair(301, 97), {108, 240}, {128, 64}, {3, 2}, {64, 64}, {40, 33}}) {
    const Image image = random_picture(width, height, random);
    const TilingOptions options{.image_size = 32, .max_tiles = 12};
    const auto fast = cut_tiles(image, options, GetParam()),
               plain = cut_tiles(image, options, ResizeIsa::kPlain);
    ASSERT_TRUE(fast.ok() && plain.ok());
    EXPECT_EQ(fast->tiles, plain->tiles) << width << " x " << height;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ResizePath,
                         ::testing::Values(ResizeIsa::kAvx2, ResizeIsa::kAvx512, ResizeIsa::kAuto),
                         [](const auto& info) { return std::string(resize_isa_name(info.param)); });

TEST(Resize, SameSizeIsACopy) {
  std::mt19937 random(4);
  const Image image = random_picture(37, 23, random);
  EXPECT_EQ(resize_bicubic(image, 37, 23).rgb, image.rgb);
}

TEST(Resize, FlatColourStaysFlat) {
  Image image{.width = 50, .height = 30};
  image.rgb.assign(image.row_bytes() * image.height, 200);
  for (ResizeIsa isa : {ResizeIsa::kPlain, ResizeIsa::kAuto}) {
    const Image out = resize_bicubic(image, 71, 11, isa);
    EXPECT_EQ(std::count(out.rgb.begin(), out.rgb.end(), 200), static_cast<ptrdiff_t>(out.rgb.size()));
  }
}

TEST(Tiles, OptionsOutOfRangeAreRefused) {
  std::mt19937 random(5);
  const Image image = random_picture(8, 8, random);
  for (const TilingOptions& options : {TilingOptions{.image_size = 0},
                                       {.image_size = 100000},
                                       {.min_tiles = 0},
                                       {.min_tiles = 5, .max_tiles = 4},
                                       {.max_tiles = 129}})
    EXPECT_EQ(cut_tiles(image, options).status().code(), StatusCode::kInvalidInput);
  EXPECT_FALSE(cut_tiles(Image{}, {}).ok());
}

TEST(Tiles, NotDynamicIsOneTileResizedDirectly) {
  std::mt19937 random(6);
  const Image image = random_picture(100, 30, random);
  const auto tiled = cut_tiles(image, {.image_size = 28, .dynamic = false});
  ASSERT_TRUE(tiled.ok());
  EXPECT_EQ(tiled->grid.tiles, 1);
  EXPECT_EQ(interleaved_tile(*tiled, 0).rgb, resize_bicubic(image, 28, 28).rgb);
}

}  // namespace
}  // namespace tessera
