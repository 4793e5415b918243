// Resident memory against the plan at the worst case that admission allows: a full batch, each with a picture of its own
// of the most tiles, sent as 12 megapixels, prompts that fill the session, so that KV cache, embedding cache and tile
// store are full. A released model's shape with random weights, the demo model's words, the CPU.
//   memory_bench [SHAPE] [BATCH] [SESSION]     defaults: InternVL3-1B 4 4096
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "backends/registry.h"
#include "core/memory_info.h"
#include "models/checkpoint.h"
#include "pipeline/chat_engine.h"
#include "runtime/memory_plan.h"
#include "tests/support/engine_client.h"
#include "vision/jpeg_writer.h"

namespace tessera {
namespace {

template <class T>
T must(Result<T> result) {
  if (result.ok()) return std::move(result).value();
  std::fprintf(stderr, "%s\n", result.status().message().c_str());
  std::exit(1);
}

struct Opened {
  MemoryPlan plan;
  std::unique_ptr<Engine> engine;
};

// open_engine's steps for a model whose words and weights come from two places.
Opened open(const std::string& shape, const std::string& root, const EngineOptions& options) {
  Opened out;
  const Checkpoint checkpoint = must(Checkpoint::open(shape, {.allow_catalogue = true}));
  ModelWords words = must(load_words(root + "/models/demo", checkpoint.config()));
  auto backend = must(open_backend({.device = "cpu"}));
  const PlanDevice device{backend->limits(), &backend->sizing()};
  out.plan = must(plan_memory(checkpoint, {&device, 1}, options));
  if (!out.plan.fits) {
    std::fprintf(stderr, "%s\n", does_not_fit_message(out.plan).c_str());
    std::exit(3);
  }
  backend->allocator().limit(static_cast<size_t>(out.plan.devices[0].allocated_bytes()));
  EngineMemory memory = must(build_engine_memory(checkpoint, *backend, backend->allocator(), backend->allocator(),
                                                 out.plan.shape, {.compute = out.plan.compute}));
  const HostMemory host{static_cast<uint8_t*>(memory.host_tiles.data()), out.plan.shape.host_tiles, out.plan.preparation_bytes};
  TokenEngineOptions engine_options;
  engine_options.valid_ids = words.tokenizer->vocab_size();
  auto tokens = std::make_unique<TokenEngine>(*backend, std::move(memory), engine_options);
  ModelInfo info;
  info.session_len = out.plan.shape.session_len;
  info.tokens_per_tile = checkpoint.config().tokens_per_tile();
  info.image_size = checkpoint.config().vision.image_size;
  out.engine = std::make_unique<ChatEngine>(info, checkpoint.config(), std::move(words), options, std::move(backend),
                                            std::move(tokens), host);
  return out;
}

// A 4:3 picture, no two alike; 12 tiles and the thumbnail.
std::string picture(int number) {
  Image image;
  image.width = 4000;
  image.height = 3000;
  image.rgb.resize(size_t{4000} * 3000 * 3);
  for (size_t i = 0; i < image.rgb.size(); ++i)
    image.rgb[i] = static_cast<uint8_t>(128 + 90 * std::sin(static_cast<double>(i % 12000) / 700 + number) +
                                        static_cast<double>(i / 12000 % 31));
  return must(encode_jpeg(image, 90));
}

Request request(std::string jpeg, int64_t session, Engine& engine) {
  Request out;
  ImageInput image;
  image.bytes = std::move(jpeg);
  out.images.push_back(std::move(image));
  out.messages.push_back({"user", {{"", 0}, {"", -1}}});
  std::string& text = out.messages[0].content[1].text;
  constexpr int64_t kNew = 512;  // long enough that the first still answers when the last one's prompt is read
  while (static_cast<int64_t>(engine.tokenize(out).first.size()) < session - kNew - 16) text += " What is that? How many objects?";
  out.max_new_tokens = session - static_cast<int64_t>(engine.tokenize(out).first.size());
  out.ignore_eos = true;
  return out;
}

int run(const std::string& shape, int64_t batch, int64_t session, const std::string& root) {
  EngineOptions options;
  options.max_batch_size = batch;
  options.session_len = session;
  std::vector<std::string> pictures;  // a client's memory, not the engine's: made before
  for (int64_t i = 0; i < batch; ++i) pictures.push_back(picture(static_cast<int>(i)));
  Opened opened = open(shape, root, options);
  const int64_t planned = opened.plan.devices[0].total_bytes();
  std::printf("%s, %lld answers of %lld tokens: planned %s, resident after start %s\n", shape.c_str(),
              static_cast<long long>(batch), static_cast<long long>(session), format_bytes(planned).c_str(),
              format_bytes(resident_bytes()).c_str());
  std::vector<std::shared_ptr<testing::Recorder>> heard;
  for (int64_t i = 0; i < batch; ++i) {
    heard.push_back(std::make_shared<testing::Recorder>());
    const auto [id, status] = opened.engine->submit(request(std::move(pictures[static_cast<size_t>(i)]), session, *opened.engine), heard.back());
    if (!status.ok()) return std::fprintf(stderr, "%s\n", status.message().c_str()), 1;
  }
  int64_t running = 0, blocks = 0;
  const auto look = [&, engine = opened.engine.get()] {
    const EngineStats stats = engine->stats();
    running = std::max(running, stats.running);
    blocks = std::max(blocks, stats.kv_blocks_used);
    return stats.running;
  };
  for (const auto& one : heard) {
    while (!one->wait_for(0.01)) look();
    const Finish& finish = one->answer().finish;
    if (finish.reason != FinishReason::kLength) return std::fprintf(stderr, "%s\n", finish.status.message().c_str()), 1;
  }
  while (look() > 0) std::this_thread::yield();  // the last step may not be over yet
  const EngineStats stats = opened.engine->stats();
  const int64_t peak = peak_resident_bytes();
  std::printf("tiles encoded %llu, answers at once %lld of %lld, KV blocks held at once %lld, kept at the end %lld of %lld, preemptions %llu\n",
              static_cast<unsigned long long>(stats.tiles_encoded), static_cast<long long>(running), static_cast<long long>(batch),
              static_cast<long long>(blocks), static_cast<long long>(stats.kv_blocks_cached),
              static_cast<long long>(stats.kv_blocks_total), static_cast<unsigned long long>(stats.preemptions));
  for (const auto& [name, bytes] : opened.plan.devices[0].named_lines())
    std::printf("  %-18s %s\n", name.c_str(), format_bytes(bytes).c_str());
  std::printf("peak resident %s of %s planned: %+.2f %%, %+.1f MiB\n", format_bytes(peak).c_str(), format_bytes(planned).c_str(),
              100.0 * static_cast<double>(peak - planned) / static_cast<double>(planned),
              static_cast<double>(peak - planned) / (1 << 20));
  return 0;
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  const auto argument = [&](int i, const char* otherwise) { return argc > i ? argv[i] : otherwise; };
  return tessera::run(argument(1, "InternVL3-1B"), std::atoll(argument(2, "4")), std::atoll(argument(3, "4096")), argument(4, "."));
}
