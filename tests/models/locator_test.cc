// Where a MODEL name leads.

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "models/checkpoint.h"
#include "tests/models/checkpoint_folder.h"
#include "tests/support/fixtures.h"

namespace tessera::testing {
namespace {

namespace fs = std::filesystem;

/// Sets a variable for the length of a test.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    ::setenv(name, value.c_str(), 1);
  }
  ~Environment() { old_.empty() ? ::unsetenv(name_) : ::setenv(name_, old_.c_str(), 1); }

 private:
  const char* name_;
  std::string old_;
};

std::string make_cache(const std::string& hub, const std::string& reference, const std::string& snapshot) {
  const fs::path repository = fs::path(hub) / "models--OpenGVLab--InternVL3-8B";
  fs::create_directories(repository / "refs");
  fs::create_directories(repository / "snapshots" / snapshot);
  if (!reference.empty()) write_text((repository / "refs/main").string(), reference);
  return (repository / "snapshots" / snapshot).string();
}

TEST(Locator, DemoLiesBesideTheProgram) {
  const auto demo = Checkpoint::open("demo");
  ASSERT_TRUE(demo.ok()) << demo.status().message();
  EXPECT_EQ(demo->name(), "demo");
  EXPECT_EQ(demo->config().vision.layers, 8);
  EXPECT_EQ(demo->config().template_name, "internvl2_5");
  EXPECT_FALSE(demo->config().language.tied);
}

TEST(Locator, CachedRepositoryByRefsMain) {
  const std::string hub = scratch_dir();
  const std::string snapshot = make_cache(hub, "abc123\n", "abc123");
  make_cache(hub, "", "older");
  const Environment cache("HF_HUB_CACHE", hub);
  const auto found = locate_model("OpenGVLab/InternVL3-8B");
  ASSERT_TRUE(found.ok()) << found.status().message();
  EXPECT_EQ(found->directory, snapshot);
}

TEST(Locator, HfHomeHasItsHubFolder) {
  const std::string home = scratch_dir();
  const std::string snapshot = make_cache(home + "/hub", "abc", "abc");
  const Environment no_cache("HF_HUB_CACHE", "");
  const Environment hf_home("HF_HOME", home);
  EXPECT_EQ(locate_model("OpenGVLab/InternVL3-8B")->directory, snapshot);
}

TEST(Locator, OnlySnapshotServesWithoutRefs) {
  const std::string hub = scratch_dir();
  const std::string snapshot = make_cache(hub, "", "only");
  const Environment cache("HF_HUB_CACHE", hub);
  EXPECT_EQ(locate_model("OpenGVLab/InternVL3-8B")->directory, snapshot);
  make_cache(hub, "", "another");
  EXPECT_NE(locate_model("OpenGVLab/InternVL3-8B").status().message().find("has 2 snapshots and no refs/main"),
            std::string::npos);
}

TEST(Locator, DamagedReferencesAreRefused) {
  const std::string hub = scratch_dir();
  make_cache(hub, "gone", "abc");
  const Environment cache("HF_HUB_CACHE", hub);
  EXPECT_NE(locate_model("OpenGVLab/InternVL3-8B").status().message().find("names the snapshot gone, which is not in the cache"),
            std::string::npos);
  make_cache(hub, "../../abc", "abc");
  EXPECT_FALSE(locate_model("OpenGVLab/InternVL3-8B").ok());
}

TEST(Locator, SaysWhereItLooked) {
  const Environment cache("HF_HUB_CACHE", "/no/such/cache");
  EXPECT_EQ(locate_model("OpenGVLab/InternVL3-8B").status().message(),
            "model OpenGVLab/InternVL3-8B is no directory and not in the Hugging Face cache /no/such/cache; the bare "
            "name of a release is enough for plan, doctor and bench only; give a checkpoint directory, or demo");
  EXPECT_EQ(locate_model("OpenGVLab/InternVL3-8B", {.allow_catalogue = true})->catalogue_name, "InternVL3-8B");
}

}  // namespace
}  // namespace tessera::testing
