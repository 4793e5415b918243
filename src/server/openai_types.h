#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "server/api_error.h"
#include "tessera/engine.h"

namespace tessera::server {

/// Bounds of one request, beside those of the HTTP layer.
struct RequestBounds {
  int64_t max_images = 64;
  int64_t max_tiles_per_image = 128;
  int64_t max_answers = 16;  ///< n
  int64_t max_top_logprobs = 20;
  int64_t max_stops = 16;
  int64_t max_stop_characters = 256;  ///< of one stop string
  int64_t max_messages = 4096;
  int64_t max_logit_bias = 1024;    ///< entries
  int64_t max_token_ids = 1 << 20;  ///< of /detokenize
  int64_t max_tokenize_characters = 1 << 20;  ///< of /tokenize, all messages together
  int json_depth = 64;
  size_t json_values = (1 << 20) + (1 << 12);  ///< of a body: the ids of /detokenize, and what is around them
  bool lenient = false;  ///< unknown fields are ignored and named in a response header
  std::string unknown_field_advice = "leave it out, or serve with --lenient";
};

/// A picture that is somewhere else: Request::images[image] waits for its bytes.
struct RemoteImage {
  int image = 0;
  std::string url;    ///< http:, https: or file:
  std::string param;  ///< its place in the request, for errors
};

/// A request of /v1/chat/completions or /v1/completions, read and checked.
struct ParsedRequest {
  Request request;
  bool chat = true;
  bool stream = false;
  bool include_usage = false;
  std::vector<RemoteImage> remote_images;
  std::vector<std::string> ignored_fields;  ///< with RequestBounds::lenient
};

/// What the parser must know of what is served.
struct ServedModel {
  std::string name;
  std::string path;  ///< also accepted as `model`
};

/// Each reads a request's body. The first thing that is wrong, missing or unknown is the error, with its
/// place.
ParsedRequest parse_chat_completion(std::string_view body, const ServedModel& model,
                                    const RequestBounds& bounds, ApiError* error);
ParsedRequest parse_completion(std::string_view body, const ServedModel& model, const RequestBounds& bounds,
                               ApiError* error);

/// POST /tokenize: a prompt (`request.prompt`) or messages. `with_pieces`: the pieces are wanted, too.
struct TokenizeRequest {
  ParsedRequest parsed;
  bool with_pieces = false;
};
TokenizeRequest parse_tokenize(std::string_view body, const ServedModel& model, const RequestBounds& bounds,
                               ApiError* error);

/// POST /detokenize: token ids.
struct DetokenizeRequest {
  std::vector<int32_t> ids;
  std::vector<std::string> ignored_fields;  ///< with RequestBounds::lenient
};
DetokenizeRequest parse_detokenize(std::string_view body, const ServedModel& model, const RequestBounds& bounds,
                                   ApiError* error);

/// Private to the parsers: the fields they share (openai_types.cc) and messages with pictures
/// (openai_messages.cc).
class FieldReader;
struct UnknownFields;
UnknownFields unknown_fields(const RequestBounds& bounds, std::vector<std::string>* ignored);
void read_messages(FieldReader& body, const RequestBounds& bounds, ParsedRequest* parsed, ApiError* error);

}  // namespace tessera::server
