#include <algorithm>

#include "core/base64.h"
#include "server/field_reader.h"
#include "server/openai_types.h"

namespace tessera::server {
namespace {

constexpr int64_t kHighDetailTiles = 24;
constexpr size_t kMaxPictureBytes = size_t{256} << 20;  // the body's bound is below it, as a rule
constexpr size_t kMaxUrlBytes = 8192;                   // of a picture that is elsewhere

struct Scope {
  const RequestBounds& bounds;
  ParsedRequest* parsed;
  ApiError* error;
  std::optional<int64_t> max_patch, min_patch;  // mm_processor_kwargs

  void finish(FieldReader& fields) const { fields.finish(unknown_fields(bounds, &parsed->ignored_fields)); }
};

// low: one tile. high: up to 24. auto: the request's or the model's own. A number of its own wins over the
// word.
void read_tile_limits(FieldReader& fields, const Scope& scope, ImageInput* image) {
  image->max_dynamic_patch = scope.max_patch;
  image->min_dynamic_patch = scope.min_patch;
  if (const auto detail = fields.string("detail", 16)) {
    if (*detail == "low")
      image->max_dynamic_patch = image->min_dynamic_patch = 1;
    else if (*detail == "high")
      image->max_dynamic_patch = std::min(kHighDetailTiles, scope.bounds.max_tiles_per_image);
    else if (*detail != "auto")
      fields.fail("detail", "is \"" + *detail + "\"; expected low, auto or high");
  }
  if (const auto most = fields.integer("max_dynamic_patch", 1, scope.bounds.max_tiles_per_image)) {
    image->max_dynamic_patch = most;
    if (fields.has("detail") && image->min_dynamic_patch) image->min_dynamic_patch = scope.min_patch;
  }
  if (image->max_dynamic_patch && image->min_dynamic_patch &&
      *image->min_dynamic_patch > *image->max_dynamic_patch)
    fields.fail("max_dynamic_patch", "of " + std::to_string(*image->max_dynamic_patch) +
                                         " is below min_dynamic_patch, " +
                                         std::to_string(*image->min_dynamic_patch));
}

void read_image(const Json& value, const std::string& path, const Scope& scope, ContentPart* part) {
  FieldReader fields(value, path, scope.error);
  std::vector<ImageInput>& images = scope.parsed->request.images;
  ImageInput image;
  read_tile_limits(fields, scope, &image);
  const Json* url = fields.find("url");
  if (!url || !url->is_string()) return fields.fail("url", "is missing; expected a data URL of a picture");
  scope.finish(fields);
  if (fields.failed()) return;
  if (static_cast<int64_t>(images.size()) >= scope.bounds.max_images)
    return fields.fail(
        "url", "is one picture more than the " + std::to_string(scope.bounds.max_images) + " of a request");
  const std::string& text = url->as_string();
  const std::string scheme = text.substr(0, std::min(text.find(':'), size_t{8}));
  if (scheme == "data" || scheme == "DATA" || scheme == "Data") {
    auto bytes = decode_data_url(text, kMaxPictureBytes);
    if (!bytes.ok())
      return fields.fail("url", "is no picture in a data URL: " + bytes.status().message(),
                         "invalid_image_url");
    image.bytes = std::move(bytes).value();
  } else if (text.size() > kMaxUrlBytes) {
    return fields.fail(
        "url", "has " + std::to_string(text.size()) + " bytes; at most " + std::to_string(kMaxUrlBytes),
        "invalid_image_url");
  } else {
    scope.parsed->remote_images.push_back({static_cast<int>(images.size()), text, fields.place("url")});
  }
  part->image = static_cast<int>(images.size());
  image.name = "picture " + std::to_string(images.size() + 1) + " (" + path + ")";  // for errors
  images.push_back(std::move(image));
}

void read_part(const Json& value, const std::string& path, const std::string& role, const Scope& scope,
               Message* message) {
  if (!value.is_object()) {
    *scope.error = {400, "[request] " + path + " is " + shown(value) + "; expected an object with a type",
                    path, "invalid_value"};
    return;
  }
  FieldReader fields(value, path, scope.error);
  const auto type = fields.string("type", 64);
  if (!type) return fields.fail("type", "is missing; expected text or image_url");
  ContentPart part;
  if (*type == "text") {
    const auto text = fields.string("text", SIZE_MAX);
    if (!text) return fields.fail("text", "is missing");
    part.text = *text;
  } else if (*type == "image_url") {
    if (role != "user")
      return fields.fail("type",
                         "is image_url in a message of role " + role + "; pictures belong to user messages");
    const Json* image = fields.find("image_url");
    if (!image || !image->is_object())
      return fields.fail("image_url", "is missing; expected an object with a url");
    read_image(*image, path + ".image_url", scope, &part);
  } else {
    return fields.fail("type", "is \"" + *type + "\"; expected text or image_url", "unsupported_parameter");
  }
  scope.finish(fields);
  message->content.push_back(std::move(part));
}

// What an answer of this API holds beside its content; people send answers back as they got them.
void accept_answer_fields(FieldReader& fields) {
  for (const char* name : {"refusal", "audio", "function_call", "tool_calls"})
    fields.refuse(name, "no served model makes it");
  if (const Json* list = fields.find("annotations"); list && !(list->is_array() && list->as_array().empty()))
    fields.fail("annotations", "is not supported: no served model makes it", "unsupported_parameter");
}

void read_message(const Json& value, const std::string& path, const Scope& scope) {
  if (!value.is_object()) {
    *scope.error = {
        400, "[request] " + path + " is " + shown(value) + "; expected an object with role and content", path,
        "invalid_value"};
    return;
  }
  FieldReader fields(value, path, scope.error);
  Message message;
  const auto role = fields.string("role", 64);
  if (!role) return fields.fail("role", "is missing; expected system, user or assistant");
  message.role = *role == "developer" ? "system" : *role;
  if (message.role != "system" && message.role != "user" && message.role != "assistant")
    return fields.fail("role", "is \"" + *role + "\"; expected system, user or assistant");
  if (message.role == "assistant") accept_answer_fields(fields);
  const Json* content = fields.find("content");
  if (!content) return fields.fail("content", "is missing; expected a string or a list of parts");
  if (content->is_string()) {
    message.content.push_back({.text = content->as_string()});
  } else if (content->is_array()) {
    if (content->as_array().empty())
      return fields.fail("content", "is an empty list; expected at least one part");
    for (size_t i = 0; i < content->as_array().size() && !fields.failed(); ++i)
      read_part(content->as_array()[i], path + ".content[" + std::to_string(i) + "]", message.role, scope,
                &message);
  } else {
    return fields.fail("content", "is " + shown(*content) + "; expected a string or a list of parts");
  }
  scope.finish(fields);
  scope.parsed->request.messages.push_back(std::move(message));
}

void read_processor_options(FieldReader& body, Scope* scope) {
  const Json* value = body.find("mm_processor_kwargs");
  if (!value || body.failed()) return;
  if (!value->is_object())
    return body.fail("mm_processor_kwargs", "is " + shown(*value) + "; expected an object");
  FieldReader fields(*value, body.place("mm_processor_kwargs"), scope->error);
  scope->max_patch = fields.integer("max_dynamic_patch", 1, scope->bounds.max_tiles_per_image);
  scope->min_patch = fields.integer("min_dynamic_patch", 1, scope->bounds.max_tiles_per_image);
  if (scope->max_patch && scope->min_patch && *scope->min_patch > *scope->max_patch)
    fields.fail("min_dynamic_patch", "of " + std::to_string(*scope->min_patch) +
                                         " is above max_dynamic_patch, " + std::to_string(*scope->max_patch));
  scope->finish(fields);
}

}  // namespace

void read_messages(FieldReader& body, const RequestBounds& bounds, ParsedRequest* parsed, ApiError* error) {
  Scope scope{bounds, parsed, error, {}, {}};
  read_processor_options(body, &scope);
  const Json* messages = body.find("messages");
  if (body.failed()) return;
  if (!messages || !messages->is_array())
    return body.fail("messages", (messages ? "is " + shown(*messages) : std::string("is missing")) +
                                     "; expected a list of messages");
  if (messages->as_array().empty())
    return body.fail("messages", "is an empty list; expected at least one message");
  if (static_cast<int64_t>(messages->as_array().size()) > bounds.max_messages)
    return body.fail("messages", "has " + std::to_string(messages->as_array().size()) +
                                     " messages; at most " + std::to_string(bounds.max_messages));
  for (size_t i = 0; i < messages->as_array().size() && !body.failed(); ++i)
    read_message(messages->as_array()[i], "messages[" + std::to_string(i) + "]", scope);
}

}  // namespace tessera::server
