// What a hostile or broken picture may cost: a refusal in one line, never a crash, a hang or memory for a
// claim.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <filesystem>
#include <map>
#include <random>

#include "tests/vision/picture_files.h"
#include "vision/png_writer.h"

namespace tessera {
namespace {
namespace fs = std::filesystem;
using namespace std::string_literals;
using testing::as_byte_span;
using testing::decode;
using testing::read_picture;

// Small files of every format and of the features that have code of their own.
const std::vector<std::string>& seeds() {
  static const std::vector<std::string> names = {"exif-6.jpg",
                                                 "jpeg-1x1.jpg",
                                                 "jpeg-rgb.jpg",
                                                 "jpeg-progressive.jpg",
                                                 "jpeg-cmyk.jpg",
                                                 "jpeg-restart.jpg",
                                                 "png-gray1.png",
                                                 "png-interlaced-palette4.png",
                                                 "png-palette2.png",
                                                 "png-la16.png",
                                                 "webp-lossy-alpha.webp",
                                                 "webp-small-frame.webp",
                                                 "webp-exif-8.webp",
                                                 "gif-interlaced.gif",
                                                 "gif-small-frame.gif",
                                                 "bmp-4.bmp",
                                                 "bmp-rle8.bmp",
                                                 "bmp-565.bmp",
                                                 "pnm-p5.pgm",
                                                 "pnm-p6-maxval.ppm"};
  return names;
}

constexpr DecodeLimits kSmall{.max_pixels = 1 << 20, .max_side = 1 << 16, .max_bytes = 1 << 22};

// Decodes and holds the result to the contract: a whole picture within the limits, or one line.
void expect_contract(const std::string& bytes, const std::string& what) {
  const auto header = probe_image(as_byte_span(bytes), kSmall);
  const auto image = decode(bytes, ExifOrientation::kApply, kSmall);
  if (image.ok()) {
    ASSERT_TRUE(header.ok()) << what;
    ASSERT_EQ(image->rgb.size(), image->row_bytes() * static_cast<size_t>(image->height)) << what;
    ASSERT_LE(int64_t{image->width} * image->height, kSmall.max_pixels) << what;
  } else {
    ASSERT_EQ(image.status().code(), StatusCode::kInvalidInput) << what;
    ASSERT_EQ(image.status().message().find('\n'), std::string::npos) << what;
  }
}

TEST(DecodeDamage, AnyTruncationIsHandled) {
  for (const std::string& name : seeds()) {
    const std::string bytes = read_picture(name);
    const size_t step = std::max<size_t>(1, bytes.size() / 150);
    for (size_t length = 0; length < bytes.size(); length += length < 200 ? 1 : step)
      expect_contract(bytes.substr(0, length), name + " cut to " + std::to_string(length));
  }
}

TEST(DecodeDamage, RandomChangesAreHandled) {
  std::mt19937 random(11);
  for (const std::string& name : seeds()) {
    const std::string bytes = read_picture(name);
    for (int round = 0; round < 150; ++round) {
      std::string changed = bytes;
      const size_t area =
          round % 2 ? changed.size() : std::min<size_t>(changed.size(), 100);  // headers matter most
      for (unsigned n = 0; n < 1 + random() % 4; ++n)
        changed[random() % area] = static_cast<char>(round % 3 ? random() : random() & 1 ? 255 : 0);
      expect_contract(changed, name + " round " + std::to_string(round));
    }
  }
}

TEST(DecodeDamage, FindsOfTheFuzzersStayFixed) {
  const fs::path folder = fs::path(TESSERA_SOURCE_DIR) / "tests/data/fuzz/pictures";
  if (!fs::exists(folder)) return;
  for (const auto& entry : fs::directory_iterator(folder))
    expect_contract(read_file(entry.path().string(), 1 << 22).value(), entry.path().filename().string());
}

TEST(DecodeDamage, LimitsHoldBeforeDecoding) {
  const std::string bytes = read_picture("jpeg-896x448.jpg");
  const auto with = [&](const DecodeLimits& limits) {
    return decode(bytes, ExifOrientation::kIgnore, limits);
  };
  EXPECT_TRUE(with({.max_pixels = 896 * 448, .max_side = 896, .max_bytes = bytes.size()}).ok());
  EXPECT_NE(with({.max_pixels = 896 * 448 - 1}).status().message().find("--max-image-pixels"),
            std::string::npos);
  EXPECT_NE(with({.max_side = 895}).status().message().find("--max-image-side"), std::string::npos);
  EXPECT_NE(with({.max_bytes = bytes.size() - 1}).status().message().find("--max-image-bytes"),
            std::string::npos);
}

void put(std::string& bytes, size_t at, std::initializer_list<int> values) {
  for (int value : values) bytes[at++] = static_cast<char>(value);
}

// Seconds of CPU time that a call takes, and the growth of the peak of resident memory, in MiB.
struct Cost {
  double seconds;
  long peak_mib;
};
Cost cost_of_refusing(const std::string& bytes) {
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  const auto image = decode(bytes);
  getrusage(RUSAGE_SELF, &after);
  EXPECT_FALSE(image.ok());
  auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return {seconds(after.ru_utime) - seconds(before.ru_utime), (after.ru_maxrss - before.ru_maxrss) >> 10};
}

// Headers that claim some 13000 x 13000 pixels, just below the limit, over data that don't hold them.
TEST(DecodeDamage, AClaimAloneCostsNoMemory) {
  std::map<std::string, std::string> claims;
  std::string jpeg = read_picture("jpeg-rgb.jpg");
  const size_t sof = jpeg.find("\xff\xc0");
  ASSERT_NE(sof, std::string::npos);
  put(jpeg, sof + 5, {13000 >> 8, 13000 & 255, 13000 >> 8, 13000 & 255});
  claims["jpeg"] = jpeg;
  std::string progressive = read_picture("jpeg-progressive.jpg");
  const size_t sof2 = progressive.find("\xff\xc2");
  ASSERT_NE(sof2, std::string::npos);
  put(progressive, sof2 + 5, {13000 >> 8, 13000 & 255, 13000 >> 8, 13000 & 255});
  claims["progressive jpeg"] = progressive;
  std::string gif = read_picture("gif-static.gif");
  put(gif, 6, {13000 & 255, 13000 >> 8, 13000 & 255, 13000 >> 8});
  const size_t frame = 13 + (size_t{3} << ((gif[10] & 7) + 1));
  const size_t descriptor = gif.find(',', frame);
  put(gif, descriptor + 5, {13000 & 255, 13000 >> 8, 13000 & 255, 13000 >> 8});
  claims["gif"] = gif;
  std::string bmp = read_picture("bmp-24.bmp");
  put(bmp, 18, {13000 & 255, 13000 >> 8, 0, 0, 13000 & 255, 13000 >> 8, 0, 0});
  claims["bmp"] = bmp;
  claims["pnm"] = "P6 13000 13000 255\n" + std::string(1000, 'x');
  for (const auto& [name, bytes] : claims) {
    const Cost cost = cost_of_refusing(bytes);
    EXPECT_LT(cost.peak_mib, 80) << name;
  }
}

TEST(DecodeDamage, ProgressiveScansWithoutEndAreRefused) {
  const std::string bytes = read_picture("jpeg-progressive.jpg");
  // The last scan's header and data once more, a thousand times.
  const size_t scan = bytes.rfind("\xff\xda"), end = bytes.rfind("\xff\xd9");
  std::string hostile = bytes.substr(0, end);
  for (int i = 0; i < 1000; ++i) hostile += bytes.substr(scan, 10) + "\x01";
  hostile += "\xff\xd9";
  const auto image = decode(hostile);
  ASSERT_FALSE(image.ok());
  EXPECT_NE(image.status().message().find("scans"), std::string::npos) << image.status().message();
}

TEST(DecodeDamage, UnknownDataSaysWhatItLooksLike) {
  const auto message = [](const std::string& bytes) { return decode(bytes).status().message(); };
  EXPECT_NE(message("II*\0rest"s).find("TIFF"), std::string::npos);
  EXPECT_NE(message("\0\0\0\x1c"
                    "ftypavif...."s)
                .find("AVIF"),
            std::string::npos);
  EXPECT_NE(message("<html>").find("HTML"), std::string::npos);
  EXPECT_NE(message("").find("empty"), std::string::npos);
  EXPECT_NE(message("P3 1 1 255 1 2 3\n").find("P6"), std::string::npos);
}

}  // namespace
}  // namespace tessera
