#include "tests/support/engine_client.h"

#include <chrono>
#include <cstdlib>
#include <stdexcept>

#include "core/file.h"

namespace tessera::testing {

void Recorder::on_prompt(const PromptInfo& info) {
  std::lock_guard lock(mutex_);
  prompt_ = info;
  ++prompts_;
}

void Recorder::on_delta(const Delta& delta) {
  std::lock_guard lock(mutex_);
  Answer& answer = answers_.at(static_cast<size_t>(delta.index));
  answer.text += delta.text;
  answer.ids.insert(answer.ids.end(), delta.token_ids.begin(), delta.token_ids.end());
  answer.logprobs.insert(answer.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
}

void Recorder::on_finish(const Finish& finish) {
  {
    std::lock_guard lock(mutex_);
    answers_.at(static_cast<size_t>(finish.index)).finish = finish;
    // A request that ends before its prompt is ready ends once, whatever n was.
    left_ = prompts_ == 0 ? 0 : left_ - 1;
  }
  ended_.notify_all();
}

bool Recorder::wait_for(double seconds) {
  std::unique_lock lock(mutex_);
  return ended_.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return left_ == 0; });
}

void Recorder::wait() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [this] { return left_ <= 0; });
}

void use_test_device(EngineOptions& options) {
  options.device = "cpu";
  if (const char* device = std::getenv("TESSERA_TEST_DEVICE")) options.device = device;
  if (options.device != "cpu") options.gpu_memory_limit = int64_t{4} << 30;  // several test programs share a GPU
  if (const char* bytes = std::getenv("TESSERA_TEST_SHARED_MEMORY"); bytes && options.device != "cpu")
    options.limits = {{"shared_memory_per_block", std::stoll(bytes)}};
}

std::shared_ptr<Recorder> ask(Engine& engine, const Request& request) {
  auto recorder = std::make_shared<Recorder>(request.n);
  const auto [id, status] = engine.submit(request, recorder);
  if (!status.ok())
    recorder->on_finish({.index = 0, .reason = FinishReason::kError, .status = status});
  recorder->wait();
  return recorder;
}

Request golden_request(const Json& golden_case, const std::string& directory) {
  Request request;
  request.image_placeholders = true;
  request.logprobs = 5;
  for (const Json& turn : golden_case.find("messages")->as_array()) {
    Message message{turn.find("role")->as_string(), {}};
    const Json& content = *turn.find("content");
    if (content.is_string()) {
      message.content.push_back({content.as_string(), -1});
    } else {
      for (const Json& part : content.as_array()) {
        if (const Json* image = part.find("image_url")) {
          message.content.push_back({"", static_cast<int>(request.images.size())});
          auto bytes = read_file(directory + "/" + image->find("url")->as_string(), size_t{1} << 30);
          if (!bytes.ok()) throw std::runtime_error(bytes.status().message());
          ImageInput input;
          input.bytes = std::move(*bytes);
          if (const Json* patches = golden_case.find("max_dynamic_patch"); patches && patches->is_integer())
            input.max_dynamic_patch = patches->as_int64();
          request.images.push_back(std::move(input));
        } else {
          message.content.push_back({part.find("text")->as_string(), -1});
        }
      }
    }
    request.messages.push_back(std::move(message));
  }
  request.max_new_tokens = golden_case.find("max_new_tokens")->as_int64();
  return request;
}

}  // namespace tessera::testing
