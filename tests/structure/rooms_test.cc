#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <set>
#include <sstream>
#include <string>

namespace tessera {
namespace {
namespace fs = std::filesystem;

using Graph = std::map<std::string, std::set<std::string>>;

// The block of docs/architecture.md that starts with ```arrows.
Graph drawn_arrows(const fs::path& root) {
  std::ifstream in(root / "docs/architecture.md");
  Graph graph;
  std::string line;
  bool inside = false;
  while (std::getline(in, line)) {
    if (line.rfind("```", 0) == 0) {
      inside = line == "```arrows";
    } else if (inside) {
      std::istringstream words(line);
      std::string from, arrow, to;
      words >> from >> arrow;
      auto& targets = graph[from];
      while (words >> to) targets.insert(to);
    }
  }
  return graph;
}

// The longest drawn room that is a prefix of the path ("backends/cpu/gemm/x.h" belongs to "backends/cpu").
std::string room_of(const std::string& path, const Graph& drawn) {
  if (path.rfind("tessera/", 0) == 0) return "public";
  std::string best;
  for (const auto& [room, targets] : drawn)
    if (path.rfind(room + "/", 0) == 0 && room.size() > best.size()) best = room;
  return best;
}

Graph real_arrows(const fs::path& root, const Graph& drawn, std::map<std::string, std::string>* example) {
  Graph graph;
  for (const auto& entry : fs::recursive_directory_iterator(root / "src")) {
    const std::string extension = entry.path().extension().string();
    if (extension != ".h" && extension != ".cc" && extension != ".cu" && extension != ".cuh") continue;
    const std::string path = fs::relative(entry.path(), root / "src").generic_string();
    const std::string from = room_of(path, drawn);
    EXPECT_FALSE(from.empty()) << path << " lies in no room of docs/architecture.md";
    std::ifstream in(entry.path());
    std::string line;
    while (std::getline(in, line)) {
      if (line.rfind("#include \"", 0) != 0) continue;
      const std::string target = line.substr(10, line.find('"', 10) - 10);
      const std::string to = room_of(target, drawn);
      EXPECT_FALSE(to.empty()) << path << " includes \"" << target << "\", which is not written from src/";
      if (to.empty() || to == from) continue;
      graph[from].insert(to);
      example->emplace(from + " -> " + to, path + " includes \"" + target + "\"");
    }
  }
  return graph;
}

TEST(Rooms, IncludeGraphHasOnlyDrawnArrows) {
  const fs::path root = TESSERA_SOURCE_DIR;
  const Graph drawn = drawn_arrows(root);
  ASSERT_GE(drawn.size(), 10u) << "docs/architecture.md has no arrows block";
  std::map<std::string, std::string> example;
  const Graph real = real_arrows(root, drawn, &example);
  for (const auto& [from, targets] : real) {
    std::cout << from << " ->";
    for (const std::string& to : targets) std::cout << ' ' << to;
    std::cout << '\n';
    for (const std::string& to : targets)
      EXPECT_TRUE(drawn.at(from).count(to)) << from << " -> " << to << " is not drawn: " << example[from + " -> " + to];
  }
}

TEST(Rooms, DrawnArrowsHaveNoCycle) {
  Graph rest = drawn_arrows(TESSERA_SOURCE_DIR);
  bool removed = true;
  while (removed && !rest.empty()) {
    removed = false;
    for (auto it = rest.begin(); it != rest.end(); ++it) {
      const bool leaf = std::none_of(it->second.begin(), it->second.end(),
                                     [&](const std::string& to) { return rest.count(to) > 0; });
      if (!leaf) continue;
      rest.erase(it);
      removed = true;
      break;
    }
  }
  EXPECT_TRUE(rest.empty()) << "a cycle through " << (rest.empty() ? "" : rest.begin()->first);
}

}  // namespace
}  // namespace tessera
