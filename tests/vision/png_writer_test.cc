#include "vision/png_writer.h"

#include <gtest/gtest.h>

#include "tests/vision/picture_files.h"

namespace tessera {
namespace {

TEST(PngWriter, WhatIsWrittenIsReadBack) {
  for (auto [width, height] : {std::pair(1, 1), {3, 2}, {257, 90}}) {
    Image image{.width = width, .height = height};
    for (int i = 0; i < 3 * width * height; ++i) image.rgb.push_back(static_cast<uint8_t>(i % 251 + i / 7));
    const auto again = testing::decode(encode_png(image));
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(again->width, width);
    EXPECT_EQ(again->height, height);
    EXPECT_EQ(again->rgb, image.rgb);
  }
}

}  // namespace
}  // namespace tessera
