// Loading does not hold the checkpoint beside the packed weights: mapped pages leave as they are read.

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "tests/models/checkpoint_folder.h"
#include "tests/models/runner.h"

// clang says it by a feature, g++ by a macro.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TESSERA_UNDER_SANITIZER
#endif
#endif

namespace tessera::testing {
namespace {

size_t resident_bytes() {
  size_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

size_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return std::stoull(line.substr(6)) * 1024;
  return 0;
}

void reset_peak() { std::ofstream("/proc/self/clear_refs") << 5; }

/// The Llama fixture with a vocabulary of `vocab` words: two large tensors.
std::string write_wide_model(int64_t vocab) {
  CheckpointFolder folder = CheckpointFolder::read(fixture_path("models/llama3-6b-vit-opengvlab"));
  folder.section("llm_config").set("vocab_size", vocab);
  for (const char* name : {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}) {
    auto& item = folder.at(name);
    item.shape[0] = vocab;
    item.values.resize(static_cast<size_t>(item.shape[0] * item.shape[1]), 0.5f);
  }
  return folder.write(DType::kF32);
}

TEST(Memory, LoadingHoldsTheWeightsAndLittleMore) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(TESSERA_UNDER_SANITIZER)
  GTEST_SKIP() << "a sanitizer keeps memory of its own";
#endif
  const std::string directory = write_wide_model(150000);  // two tensors of 77 MB stored, 38 MB as computed in bf16
  const auto backend = open_cpu();
  const Checkpoint checkpoint = Checkpoint::open_directory(directory).value();
  reset_peak();
  const size_t before = resident_bytes();
  if (peak_resident_bytes() > before + (size_t{32} << 20)) GTEST_SKIP() << "this kernel does not reset the peak";
  const auto loaded = load_model(checkpoint, *backend, backend->allocator(), {.compute = DType::kBF16});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  // The bound for any model is 256 MiB beside the weights; a file left mapped would add 154 MB here.
  EXPECT_LT(peak_resident_bytes(), before + backend->allocator().used() + (size_t{32} << 20));
}

}  // namespace
}  // namespace tessera::testing
