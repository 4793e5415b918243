// Resident memory against the plan at the worst case that admission allows, on the demo model: pictures of the most tiles
// in every place of the batch, sessions filled to their end. bench/memory_bench.cc does the same for a model above 1 GiB.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <thread>

#include "core/memory_info.h"
#include "tessera/options.h"
#include "tests/support/engine_client.h"
#include "vision/png_writer.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TESSERA_SANITIZED
#endif
#endif

namespace tessera {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// No two alike; 4:3, so that it is cut into 12 tiles and a thumbnail.
std::string picture(int number) {
  Image image{.width = 2048, .height = 1536, .rgb = std::vector<uint8_t>(size_t{2048} * 1536 * 3)};
  for (size_t i = 0; i < image.rgb.size(); ++i) image.rgb[i] = static_cast<uint8_t>(i / 4096 * 7 + static_cast<size_t>(number) * 31);
  return encode_png(image);
}

Request filling(int number, Engine& engine, int64_t session) {
  Request request;
  ImageInput image;
  image.bytes = picture(number);
  request.images.push_back(std::move(image));
  request.messages.push_back({"user", {{"", 0}, {"", -1}}});
  std::string& text = request.messages[0].content[1].text;
  const auto tokens = [&] { return static_cast<int64_t>(engine.tokenize(request).first.size()); };
  while (tokens() < session - 64) text += " How many objects do you see? What is written?";
  request.max_new_tokens = session - tokens();
  request.ignore_eos = true;
  return request;
}

TEST(PeakMemory, TheWorstCaseIsThePlan) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(TESSERA_SANITIZED)
  GTEST_SKIP() << "a sanitizer keeps memory of its own";
#endif
  constexpr int64_t kBatch = 8;
  constexpr int64_t kSession = 1536;
  std::ofstream("/proc/self/clear_refs") << 5;  // the peak begins anew
  const int64_t before = resident_bytes();
  if (peak_resident_bytes() > before + 8 * kMiB) GTEST_SKIP() << "this kernel does not reset the peak";
  EngineOptions options;
  options.model = std::string(TESSERA_SOURCE_DIR) + "/models/demo";
  options.device = "cpu";
  options.session_len = kSession;
  options.max_batch_size = kBatch;
  LoadReport report;
  auto [engine, status] = open_engine(options, &report);
  ASSERT_TRUE(status.ok()) << status.message();
  std::vector<std::shared_ptr<testing::Recorder>> heard;
  for (int i = 0; i < kBatch; ++i) {
    heard.push_back(std::make_shared<testing::Recorder>());
    const auto refused = engine->submit(filling(i, *engine, kSession), heard.back()).second;
    ASSERT_TRUE(refused.ok()) << refused.message();
  }
  for (const auto& one : heard) {
    one->wait();
    EXPECT_EQ(one->answer().finish.reason, FinishReason::kLength) << one->answer().finish.status.message();
  }
  while (engine->stats().running > 0) std::this_thread::yield();  // the last step may not be over yet
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.tiles_encoded, static_cast<uint64_t>(13 * kBatch));
  EXPECT_GT(stats.kv_blocks_cached, stats.kv_blocks_total - 2 * kBatch) << "the cache is full";
  const int64_t planned = report.devices.at(0).planned_bytes;
  // What the test program itself holds stands for the plan's `driver` line where it is larger.
  const int64_t peak = peak_resident_bytes() - std::max<int64_t>(0, before - 40 * kMiB);
  EXPECT_LT(std::abs(peak - planned), 64 * kMiB) << peak / kMiB << " MiB of " << planned / kMiB << " planned";
  std::printf("peak %.1f MiB, planned %.1f MiB\n", static_cast<double>(peak) / kMiB, static_cast<double>(planned) / kMiB);
}

}  // namespace
}  // namespace tessera
