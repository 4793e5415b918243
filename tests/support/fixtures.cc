#include "tests/support/fixtures.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace tessera::testing {
namespace fs = std::filesystem;

std::string fixture_path(const std::string& relative) {
  const char* whole = std::getenv("TESSERA_FIXTURES");
  const fs::path root = whole && *whole ? fs::path(whole) : fs::path(TESSERA_SOURCE_DIR) / "tests/data";
  return (root / relative).string();
}

bool has_fixture(const std::string& relative) { return fs::exists(fixture_path(relative)); }

std::string scratch_dir() {
  struct Owner {
    fs::path root;
    int next = 0;
    Owner() {
      std::string pattern = (fs::temp_directory_path() / "tessera-test-XXXXXX").string();
      if (!::mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed");
      root = pattern;
    }
    ~Owner() {
      std::error_code ignored;
      fs::remove_all(root, ignored);
    }
  };
  static Owner owner;
  const fs::path dir = owner.root / std::to_string(owner.next++);
  fs::create_directory(dir);
  return dir.string();
}

}  // namespace tessera::testing
