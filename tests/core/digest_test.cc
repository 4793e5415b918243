#include "core/digest.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <string>

namespace tessera {
namespace {

std::string hex(const Digest& digest) {
  unsigned char bytes[32];
  std::memcpy(bytes, digest.data(), sizeof bytes);
  std::string text;
  for (unsigned char byte : bytes) {
    char two[3];
    std::snprintf(two, sizeof two, "%02x", byte);
    text += two;
  }
  return text;
}

TEST(Digest, IsSha256) {
  DigestBuilder builder;
  builder.update("a", 1);
  builder.update("bc", 2);
  EXPECT_EQ(hex(builder.finish()), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex(builder.finish()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

}  // namespace
}  // namespace tessera
