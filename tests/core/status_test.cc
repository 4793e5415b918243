#include "tessera/status.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(Status, AMessageIsOneLineWhateverNamesStandInIt) {
  EXPECT_EQ(invalid_input("no file \"a\nb\"; give another").message(), "no file \"a\\nb\"; give another");
  EXPECT_EQ(invalid_input("\x1b[2J\r\x7f").message(), "\\x1b[2J\\x0d\\x7f") << "a name can't clear the terminal";
  EXPECT_EQ(invalid_input("größer als 5 µm").message(), "größer als 5 µm");
  EXPECT_EQ(invalid_input("b").with_context("a\nx").message(), "a\\nx: b");
}

}  // namespace
}  // namespace tessera
