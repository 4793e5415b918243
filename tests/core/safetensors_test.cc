#include "core/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

namespace tessera {
namespace {

std::string file_of(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  return file + header + std::string(data_bytes, '\1');
}

Result<SafetensorsHeader> parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)), "m.safetensors");
}

std::string error_of(const std::string& file) {
  const auto parsed = parse(file);
  if (parsed.ok()) return "parsed";
  EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidInput);
  EXPECT_EQ(parsed.status().message().find('\n'), std::string::npos);
  return parsed.status().message();
}

TEST(Safetensors, ReadsEntriesInTheOrderOfTheirData) {
  const auto header = parse(file_of(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[6,14]},"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}   )",
      14));
  ASSERT_TRUE(header.ok()) << header.status().message();
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[0].describe(), "BF16[3]");
  EXPECT_EQ(header->tensors[1].elements(), 2);
  EXPECT_EQ(header->metadata.at(0).second, "pt");
}

TEST(Safetensors, AcceptsEmptyTensorsAndNone) {
  EXPECT_TRUE(parse(file_of("{}", 0)).ok());
  EXPECT_TRUE(parse(file_of(R"({"a":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}})", 0)).ok());
  EXPECT_TRUE(parse(file_of(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4)).ok());
  EXPECT_TRUE(parse(file_of(R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", 4)).ok());
}

TEST(Safetensors, RefusesDamagedFiles) {
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  ASSERT_TRUE(parse(file_of(good, 8)).ok());
  EXPECT_EQ(error_of(""), "m.safetensors has 0 bytes; a safetensors file begins with 8 bytes of header length");
  EXPECT_EQ(error_of(file_of(good, 8).substr(0, 30)),
            "m.safetensors is truncated: its header takes 54 bytes, the file has 22 after the length");
  EXPECT_EQ(error_of(file_of(good, 7)),
            "m.safetensors: tensor a lies at bytes 0..8 of 7; the file is truncated or its header wrong");
  EXPECT_EQ(error_of(file_of(good, 9)),
            "m.safetensors has 71 bytes; its tensors end at byte 70; download the file again");
  EXPECT_EQ(error_of(std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8) + "{}"),
            "m.safetensors is no safetensors file: header length 9223372036854775807 exceeds the format's limit of "
            "100000000");
  EXPECT_NE(error_of(file_of("{\"a\":", 0)).find("m.safetensors: header: not valid JSON"), std::string::npos);
  EXPECT_EQ(error_of(file_of("[]", 0)), "m.safetensors: header is no JSON object");
}

TEST(Safetensors, RefusesBadEntries) {
  const auto entry = [](const std::string& fields) { return error_of(file_of("{\"a\":{" + fields + "}}", 8)); };
  EXPECT_EQ(entry(R"("dtype":"Q4","shape":[2],"data_offsets":[0,8])"),
            "m.safetensors: tensor a has the unknown dtype Q4");
  EXPECT_EQ(entry(R"("shape":[2],"data_offsets":[0,8])"), "m.safetensors: tensor a has no dtype");
  EXPECT_EQ(entry(R"("dtype":"F32","data_offsets":[0,8])"), "m.safetensors: tensor a has no shape");
  EXPECT_EQ(entry(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"),
            "m.safetensors: tensor a has a dimension that is no count");
  EXPECT_EQ(entry(R"("dtype":"F32","shape":[2.5],"data_offsets":[0,8])"),
            "m.safetensors: tensor a has a dimension that is no count");
  EXPECT_EQ(entry(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8])"),
            "m.safetensors: tensor a has a shape whose size overflows");
  EXPECT_EQ(entry(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"),
            "m.safetensors: tensor a is F32[3], which takes 12 bytes, but has 8");
  EXPECT_EQ(entry(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"),
            "m.safetensors: tensor a lies at bytes 8..0 of 8; the file is truncated or its header wrong");
  EXPECT_EQ(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615])"),
            "m.safetensors: tensor a has data_offsets that are no counts");
}

TEST(Safetensors, RefusesOverlapsGapsAndDuplicates) {
  EXPECT_EQ(error_of(file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                             R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                             12)),
            "m.safetensors: tensor b overlaps the one before it (it begins at byte 120, expected 124); download the "
            "file again");
  EXPECT_EQ(error_of(file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                             R"("b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
                             12)),
            "m.safetensors: tensor b leaves a gap before it (it begins at byte 124, expected 120); download the file "
            "again");
  EXPECT_NE(error_of(file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                             R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                             8))
                .find("repeated key \"a\""),
            std::string::npos);
}

TEST(Safetensors, WritesWhatItReads) {
  const std::string path = (std::filesystem::path(::testing::TempDir()) / "tessera-roundtrip.safetensors").string();
  const std::vector<float> values = {1.5f, -2, 3, 0.25f};
  const std::vector<uint8_t> odd = {7};
  const std::vector<SafetensorsPart> parts = {{"odd", DType::kU8, {1}, std::as_bytes(std::span(odd))},
                                              {"x", DType::kF32, {2, 2}, std::as_bytes(std::span(values))}};
  ASSERT_TRUE(write_safetensors(path, parts).ok());
  const auto file = Safetensors::open(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  const SafetensorsEntry* x = file->find("x");
  ASSERT_NE(x, nullptr);
  std::vector<float> middle(2);
  file->read(*x, 1, 2, DType::kF32, middle.data());  // at an odd address: read all the same
  EXPECT_EQ(middle, (std::vector<float>{-2, 3}));
  std::vector<bf16> all(4);
  file->read(*x, 0, 4, DType::kBF16, all.data());
  EXPECT_EQ(to_float(all[3]), 0.25f);
  EXPECT_EQ(file->find("y"), nullptr);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace tessera
