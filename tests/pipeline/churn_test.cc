// Many short and many cancelled requests through the demo model: what they held is given back.
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "core/memory_info.h"
#include "tessera/options.h"
#include "tests/support/engine_client.h"

namespace tessera {
namespace {

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

class Churn : public ::testing::Test {
 protected:
  Churn() {
    EngineOptions options;
    options.model = root_ + "/models/demo";
    testing::use_test_device(options);
    options.session_len = 1024;
    options.max_batch_size = 16;
    options.kv_cache_tokens = 4096;  // small, so that blocks run out and sequences are preempted
    options.tile_cache_bytes = 4 << 20;
    auto [engine, status] = open_engine(options);
    EXPECT_TRUE(status.ok()) << status.message();
    engine_ = std::move(engine);
    for (const char* file : {"11-easyvqa-64x64.png", "12-easyvqa-64x64.png", "04-handwriting-224x224.png", "10-chart-448x448.png"})
      pictures_.push_back(slurp(root_ + "/examples/" + file));
  }

  Request draw(std::mt19937& random) const {
    Request request;
    Message user{"user", {}};
    const unsigned kind = random() % 8;
    if (kind < 3) {
      ImageInput image;
      image.bytes = pictures_[random() % pictures_.size()];
      if (kind == 0) image.bytes.resize(image.bytes.size() / 2);  // a torn upload
      request.images.push_back(std::move(image));
      user.content.push_back({"", 0});
    }
    user.content.push_back({"How many objects " + std::to_string(random() % 50) + "?", -1});
    request.messages.push_back(std::move(user));
    request.max_new_tokens = 1 + static_cast<int64_t>(random() % 6);
    request.ignore_eos = true;
    request.n = random() % 10 == 0 ? 2 : 1;
    if (random() % 5 == 0) request.sampling.temperature = 1.0;
    return request;
  }

  // One wave of requests in flight at once, a third of them cancelled at some moment.
  void wave(std::mt19937& random, int count) {
    std::vector<std::shared_ptr<testing::Recorder>> heard;
    for (int i = 0; i < count; ++i) {
      const Request request = draw(random);
      heard.push_back(std::make_shared<testing::Recorder>(request.n));
      const auto [id, status] = engine_->submit(request, heard.back());
      ASSERT_TRUE(status.ok()) << status.message();
      if (random() % 3 == 0) {
        if (random() % 2) std::this_thread::yield();
        engine_->cancel(id);
      }
    }
    for (const auto& one : heard) one->wait();
  }

  const std::string root_ = TESSERA_SOURCE_DIR;
  std::unique_ptr<Engine> engine_;
  std::vector<std::string> pictures_;
};

TEST_F(Churn, TwoThousandRequestsLeaveNothingBehind) {
  std::mt19937 random(1);
  wave(random, 200);  // caches and pools reach their size
  const int64_t before = resident_bytes();
  for (int i = 0; i < 18; ++i) wave(random, 100);
  while (engine_->stats().running > 0) std::this_thread::yield();  // the last step may not be over yet
  const EngineStats after = engine_->stats();
  EXPECT_EQ(after.kv_blocks_used, 0);
  EXPECT_EQ(after.running, 0);
  EXPECT_EQ(after.waiting, 0);
  EXPECT_GT(after.requests_finished, 1000u);
#ifndef TESSERA_SANITIZED  // a sanitizer keeps what is freed
  // The allocator keeps pages for its threads; a leak of one tile a request would be 250 MiB.
  EXPECT_LT(resident_bytes(), before + (int64_t{24} << 20));
#else
  (void)before;
#endif
}

}  // namespace
}  // namespace tessera
