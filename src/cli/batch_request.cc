#include "cli/batch_request.h"

#include <filesystem>
#include <utility>

#include "cli/session.h"
#include "server/openai_types.h"

namespace tessera::cli {
namespace {

// "a/b.png" -> "file:///dir/a/b.png"; URLs with a scheme stay as they are.
std::string as_url(const std::string& text, const std::string& directory) {
  const size_t colon = text.find(':');
  const bool scheme = colon != std::string::npos && colon > 1 &&
                      text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+.-") == colon;
  if (scheme || text.empty()) return text;
  return "file://" + std::filesystem::absolute(std::filesystem::path(directory) / text).string();
}

Json* member(Json& object, std::string_view key) {
  if (!object.is_object()) return nullptr;
  for (auto& [name, value] : object.as_object())
    if (name == key) return &value;
  return nullptr;
}

void make_paths_urls(Json& body, const std::string& directory) {
  Json* messages = member(body, "messages");
  if (!messages || !messages->is_array()) return;
  for (Json& message : messages->as_array()) {
    Json* content = member(message, "content");
    if (!content || !content->is_array()) continue;
    for (Json& part : content->as_array()) {
      Json* image = member(part, "image_url");
      Json* url = image && image->is_object() ? member(*image, "url") : image;
      if (url && url->is_string()) *url = Json(as_url(url->as_string(), directory));
    }
  }
}

Json take(Json& body, std::string_view key) {
  Json::Object& members = body.as_object();
  for (auto it = members.begin(); it != members.end(); ++it)
    if (it->first == key) {
      Json value = std::move(it->second);
      members.erase(it);
      return value;
    }
  return {};
}

// The batch's own spelling of the tile limits becomes the HTTP API's.
void move_patch_limits(Json& body) {
  for (const char* name : {"max_dynamic_patch", "min_dynamic_patch"}) {
    Json value = take(body, name);
    if (value.is_null()) continue;
    Json* kwargs = member(body, "mm_processor_kwargs");
    if (!kwargs) {
      body.set("mm_processor_kwargs", Json::object());
      kwargs = member(body, "mm_processor_kwargs");
    }
    kwargs->set(name, std::move(value));
  }
}

template <class T>
void fill(std::optional<T>& value, const std::optional<T>& fallback) {
  if (!value) value = fallback;
}

Status apply_defaults(const SamplingFlags& flags, Request& request) {
  Request defaults;
  TESSERA_RETURN_IF_ERROR(flags.apply(defaults));
  SamplingOptions& s = request.sampling;
  const SamplingOptions& d = defaults.sampling;
  fill(s.temperature, d.temperature);
  fill(s.top_p, d.top_p);
  fill(s.top_k, d.top_k);
  fill(s.min_p, d.min_p);
  fill(s.repetition_penalty, d.repetition_penalty);
  fill(s.presence_penalty, d.presence_penalty);
  fill(s.frequency_penalty, d.frequency_penalty);
  fill(s.seed, d.seed);
  fill(request.max_new_tokens, defaults.max_new_tokens);
  if (request.stop.empty()) request.stop = defaults.stop;
  if (request.logprobs < 0) request.logprobs = defaults.logprobs;
  if (request.markup_tokens.empty()) request.markup_tokens = defaults.markup_tokens;
  request.ignore_eos = request.ignore_eos || defaults.ignore_eos;
  const bool has_system = !request.messages.empty() && request.messages.front().role == "system";
  if (flags.system && !has_system)
    request.messages.insert(request.messages.begin(), Message{"system", {{*flags.system, -1}}});
  return {};
}

Status read_files(const server::ParsedRequest& parsed, const EngineOptions& options, Request& request) {
  for (const server::RemoteImage& remote : parsed.remote_images) {
    if (remote.url.rfind("file://", 0) != 0)
      return invalid_input(remote.param + " is " + remote.url.substr(0, 80) +
                           "; a batch takes data URLs, file:// URLs and paths");
    auto& image = request.images[static_cast<size_t>(remote.image)];
    TESSERA_ASSIGN_OR_RETURN(ImageInput file, read_image(remote.url.substr(7), options));
    image.bytes = std::move(file.bytes);
    image.name = std::move(file.name);
  }
  return {};
}

Result<Request> parse_request(Json body, const std::string& directory, const SamplingFlags& defaults,
                              const EngineOptions& options) {
  if (!member(body, "messages")) return invalid_input("the line has no \"messages\"");
  make_paths_urls(body, directory);
  move_patch_limits(body);
  body.set("model", options.model);
  server::ApiError error;
  server::ParsedRequest parsed =
      server::parse_chat_completion(body.dump(), {.name = options.model, .path = options.model},
                                    {.unknown_field_advice = "leave it out"}, &error);
  if (error.failed()) return invalid_input(error.message);
  if (parsed.stream) return invalid_input("stream is true; a batch writes whole results");
  if (parsed.request.n != 1)
    return invalid_input("n is " + std::to_string(parsed.request.n) + "; a batch writes one answer a line");
  Request request = std::move(parsed.request);
  TESSERA_RETURN_IF_ERROR(read_files(parsed, options, request));
  TESSERA_RETURN_IF_ERROR(apply_defaults(defaults, request));
  request.image_placeholders = true;
  return request;
}

}  // namespace

std::optional<Json> batch_line_id(const std::string& line) {
  auto json = Json::parse(line);
  if (!json.ok()) return std::nullopt;
  const Json* id = json->find("id");
  return id ? std::optional<Json>(*id) : std::nullopt;
}

BatchLine read_batch_line(const std::string& line, const std::string& directory, const SamplingFlags& defaults,
                          const EngineOptions& options) {
  BatchLine out;
  auto json = Json::parse(line);
  if (!json.ok()) {
    out.request = json.status();
    return out;
  }
  if (!json->is_object()) {
    out.request = invalid_input("the line is no JSON object");
    return out;
  }
  if (json->find("id")) out.id = take(*json, "id");
  out.request = parse_request(std::move(*json), directory, defaults, options);
  return out;
}

}  // namespace tessera::cli
