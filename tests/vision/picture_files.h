#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "core/digest.h"
#include "core/file.h"
#include "core/json.h"
#include "tests/support/fixtures.h"
#include "vision/decode.h"

namespace tessera::testing {

inline std::string read_picture(const std::string& name) {
  auto bytes = read_file(fixture_path("images/" + name), size_t{16} << 20);
  EXPECT_TRUE(bytes.ok()) << bytes.status().message();
  return bytes.ok() ? *bytes : std::string();
}

inline std::span<const std::byte> as_byte_span(const std::string& text) {
  return std::as_bytes(std::span(text));
}

inline Result<Image> decode(const std::string& bytes, ExifOrientation exif = ExifOrientation::kIgnore,
                            const DecodeLimits& limits = {}) {
  return decode_image(as_byte_span(bytes), limits, exif);
}

inline std::string sha256_hex(const std::vector<uint8_t>& bytes) {
  DigestBuilder builder;
  builder.update(bytes.data(), bytes.size());
  const Digest digest = builder.finish();
  unsigned char raw[sizeof digest];
  std::memcpy(raw, digest.data(), sizeof raw);
  std::string hex;
  for (unsigned char byte : raw) {
    char text[3];
    std::snprintf(text, sizeof text, "%02x", byte);
    hex += text;
  }
  return hex;
}

inline const Json& picture_goldens() {
  static const Json goldens = Json::parse_file(fixture_path("images/goldens.json")).value();
  return goldens;
}

}  // namespace tessera::testing
