#include "cli/answer.h"

#include <chrono>

namespace tessera::cli {
namespace {

Json logprobs_json(const std::vector<TokenLogprob>& logprobs) {
  Json list = Json::array();
  for (const TokenLogprob& entry : logprobs) {
    Json top = Json::array();
    for (const auto& [id, logprob] : entry.top) top.push_back(Json::Array{Json(id), Json(logprob)});
    Json item;
    item.set("token_id", entry.token_id);
    item.set("logprob", entry.logprob);
    item.set("top", std::move(top));
    list.push_back(std::move(item));
  }
  return list;
}

Json timings_json(double load_s, const Timings& timings) {
  Json json;
  json.set("load_s", load_s);
  json.set("preprocess_s", timings.preprocess_s);
  json.set("encode_s", timings.encode_s);
  json.set("prefill_s", timings.prefill_s);
  json.set("decode_s", timings.decode_s);
  return json;
}

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "cancelled";
    case FinishReason::kError: return "error";
  }
  return "error";
}

Json images_json(const std::vector<ImageInfo>& images) {
  Json list = Json::array();
  for (const ImageInfo& image : images) {
    Json item;
    item.set("width", image.width);
    item.set("height", image.height);
    item.set("grid", Json::Array{Json(image.columns), Json(image.rows)});
    item.set("tiles", image.tiles);
    list.push_back(std::move(item));
  }
  return list;
}

void Answer::on_prompt(const PromptInfo& info) {
  std::lock_guard lock(mutex_);
  prompt_ = info;
}

void Answer::on_delta(const Delta& delta) {
  if (on_text_ && !delta.text.empty()) on_text_(delta.text);
  std::lock_guard lock(mutex_);
  text_ += delta.text;
  token_ids_.insert(token_ids_.end(), delta.token_ids.begin(), delta.token_ids.end());
  logprobs_.insert(logprobs_.end(), delta.logprobs.begin(), delta.logprobs.end());
}

void Answer::on_finish(const Finish& finish) {
  {
    std::lock_guard lock(mutex_);
    finish_ = finish;
    done_ = true;
  }
  ended_.notify_all();
}

bool Answer::wait_for(double seconds) {
  std::unique_lock lock(mutex_);
  return ended_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return done_; });
}

bool Answer::done() const {
  std::lock_guard lock(mutex_);
  return done_;
}

Json Answer::to_json(double load_s, bool logprobs) const {
  std::lock_guard lock(mutex_);
  Json ids = Json::array();
  for (int32_t id : token_ids_) ids.push_back(id);
  Json json;
  json.set("text", text_);
  json.set("finish_reason", finish_reason_name(finish_.reason));
  json.set("prompt_tokens", prompt_.prompt_tokens);
  json.set("image_tokens", prompt_.image_tokens);
  json.set("completion_tokens", static_cast<int64_t>(token_ids_.size()));
  json.set("token_ids", std::move(ids));
  json.set("images", images_json(prompt_.images));
  if (logprobs) json.set("logprobs", logprobs_json(logprobs_));
  json.set("timings", timings_json(load_s, finish_.timings));
  return json;
}

}  // namespace tessera::cli
