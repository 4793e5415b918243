// Figures of the engine on a model (default models/demo): many requests at once against one by one, a chat's second turn
// against its first, a repeated picture. Prints one line a figure.
//   engine_bench [ROOT] [together|alone]     the second: only that half of the throughput, for a profiler
#include <chrono>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

#include "tessera/options.h"
#include "tests/support/engine_client.h"

namespace tessera {
namespace {

using testing::Recorder;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// A listener that also knows when the first token came.
class Clocked : public Recorder {
 public:
  double begin = now(), first = 0;
  void on_delta(const Delta& delta) override {
    if (first == 0) first = now();
    Recorder::on_delta(delta);
  }
  double first_token_s() const { return first - begin; }
};

std::unique_ptr<Engine> open(const std::string& model, int64_t batch) {
  EngineOptions options;
  options.model = model;
  options.device = "cpu";
  options.max_batch_size = batch;
  options.session_len = 2048;
  auto [engine, status] = open_engine(options);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    std::exit(1);
  }
  return std::move(engine);
}

Request question(const std::string& text, const std::string& picture, int64_t max_patch) {
  Request request;
  ImageInput image;
  image.bytes = slurp(picture);
  image.max_dynamic_patch = max_patch;
  request.images.push_back(std::move(image));
  request.messages.push_back({"user", {{"", 0}, {text, -1}}});
  request.max_new_tokens = 256;
  return request;
}

constexpr int kRequests = 64;

// One-tile requests with 256 new tokens each; salts keep caches out of it.
std::vector<Request> requests(const std::string& run, const std::string& pictures) {
  std::vector<Request> all;
  for (int i = 0; i < kRequests; ++i) {
    all.push_back(question("What number is written?", pictures + "/04-handwriting-224x224.png", 1));
    all.back().ignore_eos = true;
    all.back().cache_salt = run + std::to_string(i);
  }
  return all;
}

double together(Engine& engine, const std::vector<Request>& all) {
  const double begin = now();
  std::vector<std::shared_ptr<Recorder>> heard;
  for (const Request& request : all) {
    heard.push_back(std::make_shared<Recorder>());
    engine.submit(request, heard.back());
  }
  for (const auto& one : heard) one->wait();
  return now() - begin;
}

double alone(Engine& engine, const std::vector<Request>& all) {
  const double begin = now();
  for (const Request& request : all) testing::ask(engine, request);
  return now() - begin;
}

// Where the engine's time of a run went.
void print_parts(const char* name, const EngineStats& before, const EngineStats& after) {
  std::printf("  %-10s vision %.2f s, steps with prompts %.2f s, decode steps %.2f s; %llu steps\n", name,
              after.encode_s - before.encode_s, after.prefill_s - before.prefill_s, after.decode_s - before.decode_s,
              static_cast<unsigned long long>(after.steps - before.steps));
}

// The two in turns, three times: a busy machine slows both.
void throughput(const std::string& model, const std::string& pictures, const std::string& only) {
  const auto engine = open(model, kRequests);
  for (int round = 0; round < 3; ++round) {
    const std::string salt = std::to_string(round);
    const EngineStats start = engine->stats();
    const double at_once = only == "alone" ? 0 : together(*engine, requests("together" + salt, pictures));
    const EngineStats middle = engine->stats();
    const double one_by_one = only == "together" ? 0 : alone(*engine, requests("alone" + salt, pictures));
    std::printf("64 requests, 1 tile, 256 new tokens: at once %.2f s (%.0f tokens/s), one by one %.2f s: %.2fx\n", at_once,
                kRequests * 256 / at_once, one_by_one, one_by_one / at_once);
    print_parts("at once", start, middle);
    print_parts("one by one", middle, engine->stats());
  }
}

void second_turn(const std::string& model, const std::string& pictures) {
  const auto engine = open(model, 4);
  Request talk = question("Describe the image.", pictures + "/03-shapes-896x672.png", 12);
  auto first = std::make_shared<Clocked>();
  engine->submit(talk, first);
  first->wait();
  talk.messages.push_back({"assistant", {{first->answer().text, -1}}});
  talk.messages.push_back({"user", {{"Is there a brown diamond?", -1}}});
  auto second = std::make_shared<Clocked>();
  engine->submit(talk, second);
  second->wait();
  std::printf("chat on a 13-tile picture, time to first token: first turn %.1f ms, second %.1f ms: %.1f %%\n",
              first->first_token_s() * 1e3, second->first_token_s() * 1e3,
              100 * second->first_token_s() / first->first_token_s());
  const EngineStats before = engine->stats();
  auto other = std::make_shared<Clocked>();
  engine->submit(question("What shape is brown?", pictures + "/03-shapes-896x672.png", 12), other);
  other->wait();
  const EngineStats after = engine->stats();
  std::printf("the picture in another request: %llu vision passes, %llu decoded, first token after %.1f ms\n",
              static_cast<unsigned long long>(after.vision_passes - before.vision_passes),
              static_cast<unsigned long long>(1 - (after.tile_cache_hits - before.tile_cache_hits)),
              other->first_token_s() * 1e3);
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  const std::string root = argc > 1 ? argv[1] : ".";
  const std::string only = argc > 2 ? argv[2] : "";
  tessera::throughput(root + "/models/demo", root + "/examples", only);
  if (only.empty()) tessera::second_turn(root + "/models/demo", root + "/examples");
  return 0;
}
