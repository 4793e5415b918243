// Other people's libraries stay where docs/dependencies.md says.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>

namespace tessera {
namespace {
namespace fs = std::filesystem;

// The package that a header comes from, by the header's name or its first folder. The standard library, POSIX and CUDA
// (one room by itself) have none.
const std::map<std::string, std::string>& packages() {
  static const std::map<std::string, std::string> kPackages = {
      {"jpeglib.h", "libjpeg62-turbo-dev"}, {"zlib.h", "zlib1g-dev"},     {"utf8proc.h", "libutf8proc-dev"},
      {"lzma.h", "liblzma-dev"},            {"webp", "libwebp-dev"},      {"nlohmann", "nlohmann-json3-dev"},
      {"openssl", "libssl-dev"},            {"CLI", "libcli11-dev"},      {"spdlog", "libspdlog-dev"},
      {"fmt", "libfmt-dev"},                {"boost", "libboost-dev"},
  };
  return kPackages;
}

// Header folders of the C library, and of the other makers' GPU compiler (compile-checked only).
bool is_system(const std::string& folder) {
  static const std::set<std::string> kFolders = {"sys", "netinet", "arpa", "net", "hip"};
  return kFolders.count(folder) > 0;
}

// Package -> the cell of docs/dependencies.md that says where it is used.
std::map<std::string, std::string> documented(const fs::path& root) {
  std::map<std::string, std::string> cells;
  std::ifstream in(root / "docs/dependencies.md");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("| ", 0) != 0) continue;
    const size_t second = line.find(" | "), third = line.find(" | ", second + 3);
    if (third == std::string::npos) continue;
    for (const auto& [header, package] : packages())
      if (line.substr(0, second).find(package) != std::string::npos) cells[package] = line.substr(second + 3, third - second - 3);
  }
  return cells;
}

// Whether a cell names the file, or the folder that it lies in as a whole.
bool names(const std::string& cell, const fs::path& file) {
  return cell.find(file.filename().string() + "`") != std::string::npos ||
         cell.find("`" + file.parent_path().filename().string() + "/`") != std::string::npos;
}

TEST(Dependencies, StayWhereTheTableSaysAndAreAllInIt) {
  const fs::path root = TESSERA_SOURCE_DIR;
  const auto cells = documented(root);
  for (const auto& [header, package] : packages()) EXPECT_TRUE(cells.count(package)) << package << " has no row in docs/dependencies.md";
  size_t seen = 0;
  for (const auto& entry : fs::recursive_directory_iterator(root / "src")) {
    const std::string extension = entry.path().extension().string();
    if (extension != ".h" && extension != ".cc") continue;
    std::ifstream in(entry.path());
    for (std::string line; std::getline(in, line);) {
      if (line.rfind("#include <", 0) != 0) continue;
      const std::string header = line.substr(10, line.find('>') - 10), first = header.substr(0, header.find('/'));
      if (is_system(first)) continue;
      const auto package = packages().find(first);
      if (package == packages().end()) {
        EXPECT_EQ(first, header) << entry.path() << " includes <" << header << "> of a library that docs/dependencies.md does not know";
        continue;
      }
      ++seen;
      const auto cell = cells.find(package->second);
      if (cell == cells.end()) continue;
      EXPECT_TRUE(names(cell->second, fs::relative(entry.path(), root / "src")))
          << entry.path() << " includes <" << header << ">, which docs/dependencies.md has behind " << cell->second;
    }
  }
  EXPECT_GT(seen, 20u);
}

}  // namespace
}  // namespace tessera
