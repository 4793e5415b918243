#include "core/base64.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(Base64, DecodesRfc4648Vectors) {
  EXPECT_EQ(*decode_base64(""), "");
  EXPECT_EQ(*decode_base64("Zg=="), "f");
  EXPECT_EQ(*decode_base64("Zm8="), "fo");
  EXPECT_EQ(*decode_base64("Zm9vYmFy"), "foobar");
}

TEST(Base64, RefusesWhatIsNotStrict) {
  for (const char* text : {"Zg", "Zg=", "Z===", "====", "Zg==Zg==", "Zm 8", "Zm-_", "Zh==", "Zm9="})
    EXPECT_FALSE(decode_base64(text).ok()) << text;
}

TEST(Base64, EncodesWhatItDecodes) {
  for (const char* text : {"", "f", "fo", "foo", "foob", "fooba", "foobar"})
    EXPECT_EQ(*decode_base64(encode_base64(text)), text);
  EXPECT_EQ(encode_base64("fo"), "Zm8=");
}

TEST(DataUrl, NeedsBase64AndHonoursTheLimit) {
  EXPECT_EQ(*decode_data_url("data:image/png;base64,Zm9v", 3), "foo");
  EXPECT_EQ(*decode_data_url("data:;base64,Zm9v", 3), "foo");
  EXPECT_FALSE(decode_data_url("data:image/png,foo", 100).ok());
  EXPECT_FALSE(decode_data_url("data:image/png;base64,Zm9vYmFyYmF6", 3).ok());
  EXPECT_FALSE(decode_data_url("http://x", 100).ok());
}

}  // namespace
}  // namespace tessera
