#include "pipeline/sampling.h"

#include <string>

#include "core/utf8.h"

namespace tessera {
namespace {

constexpr int64_t kMaxPictures = 64;
constexpr int64_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr int64_t kMaxTiles = 128;
constexpr int kMaxAnswers = 16;

std::string number_text(double value) {
  const std::string text = Json(value).dump();
  return text.size() > 2 && text.compare(text.size() - 2, 2, ".0") == 0 ? text.substr(0, text.size() - 2) : text;
}

Status in_range(const char* name, const std::optional<double>& value, double minimum, double maximum,
                bool open_minimum = false) {
  if (!value) return {};
  if (*value <= maximum && (open_minimum ? *value > minimum : *value >= minimum)) return {};
  return invalid_input(std::string(name) + " is " + Json(*value).dump() + "; expected " +
                       (open_minimum ? "above " : "") + number_text(minimum) + " to " + number_text(maximum));
}

Status check_text(const std::string& text, const char* what) {
  if (const auto bad = first_invalid_utf8(text))
    return invalid_input(std::string(what) + " is not valid UTF-8 at byte " + std::to_string(*bad));
  return {};
}

Status check_sampling(const SamplingOptions& s) {
  TESSERA_RETURN_IF_ERROR(in_range("temperature", s.temperature, 0, 2));
  TESSERA_RETURN_IF_ERROR(in_range("top_p", s.top_p, 0, 1, true));
  TESSERA_RETURN_IF_ERROR(in_range("min_p", s.min_p, 0, 1));
  TESSERA_RETURN_IF_ERROR(in_range("repetition_penalty", s.repetition_penalty, 0, 10, true));
  TESSERA_RETURN_IF_ERROR(in_range("presence_penalty", s.presence_penalty, -2, 2));
  TESSERA_RETURN_IF_ERROR(in_range("frequency_penalty", s.frequency_penalty, -2, 2));
  if (s.top_k && (*s.top_k < 0 || *s.top_k > (1 << 20)))
    return invalid_input("top_k is " + std::to_string(*s.top_k) + "; expected 0 to 1048576");
  for (const auto& [id, bias] : s.logit_bias)
    if (!(bias >= -100 && bias <= 100))
      return invalid_input("logit_bias of token " + std::to_string(id) + " is " + Json(bias).dump() +
                           "; expected -100 to 100");
  return {};
}

Status check_images(const Request& request) {
  if (request.images.size() > kMaxPictures)
    return invalid_input(std::to_string(request.images.size()) + " pictures in a request; the limit is " +
                         std::to_string(kMaxPictures));
  for (const ImageInput& image : request.images)
    for (const auto& [name, value] : {std::pair("max_dynamic_patch", image.max_dynamic_patch),
                                      std::pair("min_dynamic_patch", image.min_dynamic_patch)})
      if (value && (*value < 1 || *value > kMaxTiles))
        return invalid_input(std::string(name) + " is " + std::to_string(*value) + "; expected 1 to " +
                             std::to_string(kMaxTiles));
  return {};
}

// A value of generation_config.json, or the fallback where it is absent or out of range: a file of defaults must not
// make every request of a model fail.
double generation_number(const std::optional<Json>& generation, const char* key, double fallback, double minimum,
                         double maximum) {
  const Json* value = generation ? generation->find(key) : nullptr;
  if (!value || !value->is_number()) return fallback;
  return value->as_double() >= minimum && value->as_double() <= maximum ? value->as_double() : fallback;
}

}  // namespace

Status check_request(const Request& request) {
  TESSERA_RETURN_IF_ERROR(check_sampling(request.sampling));
  TESSERA_RETURN_IF_ERROR(check_images(request));
  if (request.n < 1 || request.n > kMaxAnswers)
    return invalid_input("n is " + std::to_string(request.n) + "; expected 1 to " + std::to_string(kMaxAnswers));
  if (request.logprobs < -1 || request.logprobs > kMaxTopLogprobs)
    return invalid_input("logprobs is " + std::to_string(request.logprobs) + "; expected 0 to " +
                         std::to_string(kMaxTopLogprobs));
  if (request.max_new_tokens && *request.max_new_tokens < 1)
    return invalid_input("max_tokens is " + std::to_string(*request.max_new_tokens) + "; expected at least 1");
  if (request.stop.size() > kMaxStops)
    return invalid_input(std::to_string(request.stop.size()) + " stop strings; the limit is " +
                         std::to_string(kMaxStops));
  for (const std::string& stop : request.stop) {
    if (stop.empty() || stop.size() > kMaxStopBytes)
      return invalid_input("a stop string has " + std::to_string(stop.size()) + " bytes; expected 1 to " +
                           std::to_string(kMaxStopBytes));
    TESSERA_RETURN_IF_ERROR(check_text(stop, "a stop string"));
  }
  for (const Message& message : request.messages)
    for (const ContentPart& part : message.content) TESSERA_RETURN_IF_ERROR(check_text(part.text, "the text"));
  return check_text(request.prompt, "the prompt");
}

void resolve_sampling(const Request& request, const std::optional<Json>& generation, uint64_t fallback_seed,
                      TokenRequest& out) {
  const SamplingOptions& s = request.sampling;
  const Json* do_sample = generation ? generation->find("do_sample") : nullptr;
  const bool model_samples = do_sample && do_sample->is_bool() && do_sample->as_bool();
  const bool asked = s.top_p || s.top_k || s.min_p;
  const std::optional<Json> none;
  const auto& defaults = model_samples ? generation : none;
  SamplingRow& row = out.sampling;
  const double temperature = model_samples || asked ? generation_number(defaults, "temperature", 1.0, 0, 2) : 0.0;
  row.temperature = static_cast<float>(s.temperature.value_or(temperature));
  row.top_p = static_cast<float>(s.top_p.value_or(generation_number(defaults, "top_p", 1.0, 1e-6, 1)));
  row.top_k = static_cast<int32_t>(s.top_k.value_or(static_cast<int64_t>(generation_number(defaults, "top_k", 0, 0, 1 << 20))));
  row.min_p = static_cast<float>(s.min_p.value_or(generation_number(defaults, "min_p", 0.0, 0, 1)));
  row.seed = s.seed.value_or(fallback_seed);
  row.top_logprobs = request.logprobs > 0 ? request.logprobs : 0;
  out.logprobs = request.logprobs >= 0;
  out.repetition_penalty =
      s.repetition_penalty.value_or(generation_number(generation, "repetition_penalty", 1.0, 1e-3, 10));
  out.presence_penalty = s.presence_penalty.value_or(0);
  out.frequency_penalty = s.frequency_penalty.value_or(0);
  for (const auto& [id, bias] : s.logit_bias) out.logit_bias.emplace_back(id, static_cast<float>(bias));
}

}  // namespace tessera
