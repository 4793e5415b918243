// `tessera bench --serving`: the load that is offered, how it is offered, and what is printed of it.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "cli/serving_load.h"
#include "cli/serving_run.h"
#include "tests/support/program.h"
#include "vision/decode.h"
#include "vision/tile_grid.h"

namespace tessera::cli {
namespace {

TEST(ServingLoad, ArrivalsArePoisson) {
  const auto times = arrival_times(20000, /*rate=*/50, /*seed=*/3);
  double sum = 0, squares = 0, last = 0;
  for (const double time : times) {
    const double gap = time - last;
    ASSERT_GT(gap, 0);
    sum += gap, squares += gap * gap, last = time;
  }
  const double mean = sum / 20000, deviation = std::sqrt(squares / 20000 - mean * mean);
  EXPECT_NEAR(mean, 1.0 / 50, 0.0006);
  EXPECT_NEAR(deviation / mean, 1, 0.05) << "of an exponential gap both are the same";
  EXPECT_EQ(arrival_times(20000, 50, 3), times) << "the same seed draws the same load";
  EXPECT_NE(arrival_times(20000, 50, 4), times);
}

TEST(ServingLoad, MixedPicturesHaveOneToThirteenTiles) {
  const auto load = make_serving_load({.requests = 40, .pictures = "mixed", .text_tokens = 8, .new_tokens = 5, .shared_prefix = 0.5, .seed = 2});
  ASSERT_TRUE(load.ok()) << load.status().message();
  std::set<int> tiles;
  std::set<std::string> systems;
  for (const Request& request : *load) {
    const auto header = probe_image(std::as_bytes(std::span(request.images.at(0).bytes.data(), request.images[0].bytes.size())), {});
    ASSERT_TRUE(header.ok()) << header.status().message();
    tiles.insert(choose_tile_grid(header->width, header->height, {}).tiles);
    if (request.messages[0].role == "system") systems.insert(request.messages[0].content[0].text);
    EXPECT_EQ(request.max_new_tokens, 5);
    EXPECT_TRUE(request.ignore_eos);
  }
  EXPECT_EQ(*tiles.begin(), 1);
  EXPECT_EQ(*tiles.rbegin(), 13);
  EXPECT_GT(tiles.size(), 3u);
  EXPECT_EQ(systems.size(), 1u) << "one text that they share";
}

TEST(ServingRun, KeepsSoManyAtOnceAndNoMore) {
  const std::vector<Request> load(40);
  std::atomic<int> running{0}, most{0};
  std::vector<std::thread> threads;
  const SendRequest send = [&](const Request&, std::shared_ptr<Listener> listener) {
    const int now = ++running;
    most = std::max<int>(most, now);
    threads.emplace_back([&, listener] {
      Delta delta;
      for (int32_t id = 0; id < 3; ++id) {
        delta.token_ids = {id};
        listener->on_delta(delta);
      }
      --running;
      listener->on_finish({.index = 0, .reason = FinishReason::kLength});
    });
    return Status();
  };
  const ServingResult result = run_serving(load, {.concurrency = 3}, send);
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, 3);
  EXPECT_EQ(result.completed, 40);
  EXPECT_EQ(result.new_tokens, 120);
  EXPECT_EQ(result.first_token_s.size(), 40u);
  EXPECT_EQ(result.inter_token_s.size(), 80u);
}

TEST(ServingRun, PercentilesOfAHundred) {
  std::vector<double> values;
  for (int i = 100; i > 0; --i) values.push_back(i);
  const Percentiles p = percentiles(values);
  EXPECT_EQ(p.p50, 51);
  EXPECT_EQ(p.p90, 91);
  EXPECT_EQ(p.p99, 100);
  EXPECT_EQ(p.max, 100);
  EXPECT_EQ(p.mean, 50.5);
  EXPECT_EQ(percentiles({}).p99, 0);
}

TEST(ServingPlot, TimesFitTheMargin) {
  ServingResult slow;
  slow.first_token_s = {0.8, 50};
  slow.inter_token_s = {0.004};
  const std::string svg = latency_plot_svg({{1, slow}, {8, slow}}, "requests at once");
  for (const char* label : {">1 ms<", ">100 ms<", ">1 s<", ">100 s<", ">8<"}) EXPECT_NE(svg.find(label), std::string::npos) << label;
  EXPECT_EQ(svg.find("000 ms"), std::string::npos);
}

// The program itself, on the demo model: two loads, the same twelve requests each.
TEST(ServingBench, PrintsTheContractsFiguresAndAPlot) {
  const std::string plot = ::testing::TempDir() + "/serving_plot.svg";
  std::remove(plot.c_str());
  const auto run = testing::run_program({TESSERA_BINARY, "bench", std::string(TESSERA_SOURCE_DIR) + "/models/demo", "--serving", "--device", "cpu",
                                         "--requests", "12", "--sweep", "1,4", "--pictures", "mixed", "--text-tokens", "30", "--new-tokens", "6",
                                         "--shared-prefix", "1", "--session-len", "1024", "--json", "--plot", plot});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto json = Json::parse(run.out);
  ASSERT_TRUE(json.ok()) << run.out;
  ASSERT_EQ(json->as_array().size(), 2u);
  for (const Json& point : json->as_array()) {
    EXPECT_EQ(point.find("completed")->as_int64(), 12);
    EXPECT_EQ(point.find("new_tokens")->as_int64(), 72);
    for (const char* name : {"requests_per_s", "tokens_per_s", "floor_s", "share_of_floor"}) EXPECT_GT(point.find(name)->as_double(), 0) << name;
    for (const char* name : {"first_token_s", "inter_token_s", "request_s"}) {
      const Json& figures = *point.find(name);
      double last = 0;
      for (const char* rank : {"p50", "p90", "p99", "max"}) {
        EXPECT_GE(figures.find(rank)->as_double(), last) << name << " " << rank;
        last = figures.find(rank)->as_double();
      }
    }
    const Json& caches = *point.find("caches");
    EXPECT_GT(caches.find("prefix_hit_share")->as_double(), 0) << "all requests begin with the same system text";
    EXPECT_EQ(caches.find("tiles_encoded")->as_int64(), point.find("tiles")->as_int64()) << "no picture comes twice";
  }
  const auto table = testing::run_program({TESSERA_BINARY, "bench", std::string(TESSERA_SOURCE_DIR) + "/models/demo", "--serving", "--device", "cpu",
                                           "--requests", "3", "--rate", "50", "--pictures", "none", "--new-tokens", "4", "--session-len", "1024"});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  for (const char* row : {"arrivals a second: 50", "requests/s", "new tokens/s", "p99", "time to first token", "between tokens", "cache hits", "share of floor"})
    EXPECT_NE(table.out.find(row), std::string::npos) << row << "\n" << table.out;
  std::ifstream in(plot);
  std::stringstream svg;
  svg << in.rdbuf();
  EXPECT_EQ(svg.str().rfind("<svg ", 0), 0u);
  for (const char* part : {"first token p50", "between tokens p99", "requests at once", "</svg>"})
    EXPECT_NE(svg.str().find(part), std::string::npos) << part;
}

}  // namespace
}  // namespace tessera::cli
