#include "server/openai_types.h"

#include <algorithm>
#include <limits>

#include "server/field_reader.h"

namespace tessera::server {
namespace {

constexpr size_t kMaxName = 256;  // characters of a name, a salt, a user: anything that is not prose
constexpr int64_t kMaxTokens = int64_t{1} << 31;

// The body as an object; an error and null when it is none.
Json parse_body(std::string_view body, const RequestBounds& bounds, ApiError* error) {
  auto json = Json::parse(body, {.max_depth = bounds.json_depth, .max_values = bounds.json_values});
  if (!json.ok())
    *error = {400, "[request] the body is not JSON: " + json.status().message(), "", "invalid_json"};
  else if (!json->is_object())
    *error = {400, "[request] the body is " + shown(*json) + "; expected a JSON object", "", "invalid_json"};
  return error->failed() ? Json::object() : std::move(json).value();
}

void read_model(FieldReader& fields, const ServedModel& model, ApiError* error) {
  const auto name = fields.string("model", 4096);
  if (fields.failed() || !name || *name == model.name || (!model.path.empty() && *name == model.path)) return;
  *error = {404,
            "[request] model \"" + name->substr(0, 200) +
                "\" is not served here; GET /v1/models names what is (\"" + model.name + "\")",
            "model", "model_not_found"};
}

void read_logit_bias(FieldReader& fields, const RequestBounds& bounds, SamplingOptions* sampling) {
  const Json* bias = fields.find("logit_bias");
  if (!bias || fields.failed()) return;
  if (!bias->is_object())
    return fields.fail("logit_bias", "is " + shown(*bias) + "; expected an object of token ids");
  if (static_cast<int64_t>(bias->as_object().size()) > bounds.max_logit_bias)
    return fields.fail("logit_bias", "has " + std::to_string(bias->as_object().size()) +
                                         " entries; at most " + std::to_string(bounds.max_logit_bias));
  for (const auto& [key, value] : bias->as_object()) {
    int64_t id = -1;
    if (!key.empty() && key.size() <= 10 && key.find_first_not_of("0123456789") == std::string::npos)
      id = std::stoll(key);
    if (id < 0 || id > std::numeric_limits<int32_t>::max())
      return fields.fail("logit_bias", "has the key \"" + key.substr(0, 40) + "\"; expected a token id");
    if (!value.is_number() || !(value.as_double() >= -100 && value.as_double() <= 100))
      return fields.fail("logit_bias",
                         "of token " + key + " is " + shown(value) + "; expected a number, -100..100");
    sampling->logit_bias[static_cast<int32_t>(id)] = value.as_double();
  }
}

void read_sampling(FieldReader& fields, const RequestBounds& bounds, SamplingOptions* sampling) {
  constexpr double kAboveZero = std::numeric_limits<double>::min();  // (0, ...]
  sampling->temperature = fields.number("temperature", 0, 2);
  sampling->top_p = fields.number("top_p", kAboveZero, 1);
  // -1 is vLLM's word for off.
  if (const auto top_k = fields.integer("top_k", -1, std::numeric_limits<int32_t>::max()))
    sampling->top_k = std::max<int64_t>(*top_k, 0);
  sampling->min_p = fields.number("min_p", 0, 1);
  sampling->repetition_penalty = fields.number("repetition_penalty", kAboveZero, 10);
  sampling->presence_penalty = fields.number("presence_penalty", -2, 2);
  sampling->frequency_penalty = fields.number("frequency_penalty", -2, 2);
  sampling->seed = fields.seed("seed");
  read_logit_bias(fields, bounds, sampling);
}

// A list of strings, or one string. `count` and `characters` bound them.
std::vector<std::string> read_strings(FieldReader& fields, const char* name, int64_t count,
                                      int64_t characters, bool one_is_fine) {
  std::vector<std::string> strings;
  const Json* value = fields.find(name);
  if (!value || fields.failed()) return strings;
  if (value->is_string() && one_is_fine)
    strings.push_back(value->as_string());
  else if (!value->is_array())
    fields.fail(name, "is " + shown(*value) + "; expected a list of strings");
  else
    for (const Json& item : value->as_array()) {
      if (!item.is_string()) {
        fields.fail(name, "holds " + shown(item) + "; expected strings");
        break;
      }
      strings.push_back(item.as_string());
    }
  if (static_cast<int64_t>(strings.size()) > count)
    fields.fail(name, "has " + std::to_string(strings.size()) + " strings; at most " + std::to_string(count));
  for (const std::string& text : strings)
    if (text.empty() || static_cast<int64_t>(character_count(text)) > characters)
      fields.fail(name, "has a string of " + std::to_string(character_count(text)) +
                            " characters; expected 1.." + std::to_string(characters));
  return strings;
}

void read_stream(FieldReader& fields, const RequestBounds& bounds, ParsedRequest* parsed, ApiError* error) {
  parsed->stream = fields.boolean("stream").value_or(false);
  const Json* options = fields.find("stream_options");
  if (!options || fields.failed()) return;
  if (!parsed->stream) return fields.fail("stream_options", "is given without stream: true");
  if (!options->is_object())
    return fields.fail("stream_options", "is " + shown(*options) + "; expected an object");
  FieldReader inner(*options, "stream_options", error);
  parsed->include_usage = inner.boolean("include_usage").value_or(false);
  inner.finish(unknown_fields(bounds, &parsed->ignored_fields));
}

void read_response_format(FieldReader& fields, const RequestBounds& bounds, ParsedRequest* parsed,
                          ApiError* error) {
  const Json* value = fields.find("response_format");
  if (!value || fields.failed()) return;
  if (!value->is_object())
    return fields.fail("response_format", "is " + shown(*value) + "; expected an object");
  FieldReader format(*value, "response_format", error);
  ResponseFormat& out = parsed->request.response_format;
  const std::string type = format.string("type", 64).value_or("");
  if (type == "json_object") {
    out.kind = ResponseFormat::Kind::kJsonObject;
  } else if (type == "json_schema") {
    const Json* wrapper = format.find("json_schema");
    if (!wrapper || !wrapper->is_object())
      return format.fail("json_schema", "is missing; expected an object with a schema");
    FieldReader inner(*wrapper, "response_format.json_schema", error);
    inner.string("name", 64);
    inner.string("description", 64 << 10);
    inner.boolean("strict");  // the grammar is always strict
    const Json* schema = inner.find("schema");
    if (!schema || !(schema->is_object() || schema->is_bool()))
      return inner.fail("schema", "is missing; expected a JSON schema");
    inner.finish(unknown_fields(bounds, &parsed->ignored_fields));
    out.kind = ResponseFormat::Kind::kJsonSchema;
    out.schema = schema->dump();
  } else if (type != "text") {
    return format.fail("type", "is \"" + type + "\"; expected text, json_object or json_schema");
  }
  format.finish(unknown_fields(bounds, &parsed->ignored_fields));
}

void read_markup(FieldReader& fields, ParsedRequest* parsed) {
  parsed->request.markup_tokens = read_strings(fields, "markup_tokens", 3, 16, false);
  for (const std::string& word : parsed->request.markup_tokens)
    if (word != "ref" && word != "box" && word != "quad")
      fields.fail("markup_tokens", "has \"" + word + "\"; expected ref, box or quad");
}

// The documented fields that have no effect here. `store: true` would be a promise.
void accept_without_effect(FieldReader& fields) {
  for (const char* name : {"user", "metadata", "service_tier"}) fields.accept(name);
  fields.boolean("parallel_tool_calls");
  if (fields.boolean("store").value_or(false))
    fields.fail("store", "is true; nothing is stored here, send false", "unsupported_parameter");
}

// What both endpoints share. `token_limits`: the names of the limit of new tokens.
void read_shared(FieldReader& fields, const ServedModel& model, const RequestBounds& bounds,
                 ParsedRequest* parsed, ApiError* error) {
  Request& request = parsed->request;
  read_model(fields, model, error);
  read_stream(fields, bounds, parsed, error);
  read_sampling(fields, bounds, &request.sampling);
  request.max_new_tokens = fields.integer("max_tokens", 1, kMaxTokens);
  request.n = static_cast<int>(fields.integer("n", 1, bounds.max_answers).value_or(1));
  request.stop = read_strings(fields, "stop", bounds.max_stops, bounds.max_stop_characters, true);
  request.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  request.cache_salt = fields.string("cache_salt", kMaxName).value_or("");
  read_response_format(fields, bounds, parsed, error);
  read_markup(fields, parsed);
  accept_without_effect(fields);
}

void read_chat_limits(FieldReader& fields, const RequestBounds& bounds, Request* request) {
  if (const auto most = fields.integer("max_completion_tokens", 1, kMaxTokens)) {
    if (request->max_new_tokens && *request->max_new_tokens != *most)
      return fields.fail("max_completion_tokens", "and max_tokens differ; send one of them");
    request->max_new_tokens = most;
  }
  const bool logprobs = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", 0, bounds.max_top_logprobs);
  if (top && !logprobs) return fields.fail("top_logprobs", "is given without logprobs: true");
  if (logprobs) request->logprobs = static_cast<int>(top.value_or(0));
}

void refuse_tools(FieldReader& fields) {
  for (const char* name : {"tools", "tool_choice", "functions", "function_call"})
    fields.refuse(name, "no released InternVL chat template has tool calls");
  fields.refuse("audio", "answers are text");
  if (const Json* modalities = fields.find("modalities"))
    if (modalities->dump() != "[\"text\"]")
      fields.fail("modalities", "is not [\"text\"]; answers are text", "unsupported_parameter");
}

void read_prompt(FieldReader& fields, Request* request) {
  const Json* prompt = fields.find("prompt");
  if (fields.failed()) return;
  if (prompt && prompt->is_array() && prompt->as_array().size() == 1 && prompt->as_array()[0].is_string())
    prompt = &prompt->as_array()[0];
  if (!prompt) return fields.fail("prompt", "is missing; expected a string");
  if (!prompt->is_string())
    return fields.fail(
        "prompt", "is " + shown(*prompt) + "; expected one string (several prompts are several requests)");
  if (prompt->as_string().empty()) return fields.fail("prompt", "is empty");
  request->prompt = prompt->as_string();
}

}  // namespace

UnknownFields unknown_fields(const RequestBounds& bounds, std::vector<std::string>* ignored) {
  return {.ignored = bounds.lenient ? ignored : nullptr, .advice = bounds.unknown_field_advice};
}

ParsedRequest parse_chat_completion(std::string_view body, const ServedModel& model,
                                    const RequestBounds& bounds, ApiError* error) {
  ParsedRequest parsed;
  const Json json = parse_body(body, bounds, error);
  FieldReader fields(json, "", error);
  if (fields.failed()) return parsed;
  read_shared(fields, model, bounds, &parsed, error);
  read_chat_limits(fields, bounds, &parsed.request);
  refuse_tools(fields);
  read_messages(fields, bounds, &parsed, error);
  fields.finish(unknown_fields(bounds, &parsed.ignored_fields));
  return parsed;
}

ParsedRequest parse_completion(std::string_view body, const ServedModel& model, const RequestBounds& bounds,
                               ApiError* error) {
  ParsedRequest parsed;
  parsed.chat = false;
  const Json json = parse_body(body, bounds, error);
  FieldReader fields(json, "", error);
  if (fields.failed()) return parsed;
  read_shared(fields, model, bounds, &parsed, error);
  parsed.request.logprobs =
      static_cast<int>(fields.integer("logprobs", 0, bounds.max_top_logprobs).value_or(-1));
  read_prompt(fields, &parsed.request);
  fields.refuse("suffix", "the served models do not fill in the middle");
  if (fields.boolean("echo").value_or(false))
    fields.fail("echo", "is not supported: the prompt is not part of the answer", "unsupported_parameter");
  if (const auto best = fields.integer("best_of", 1, bounds.max_answers); best && *best != parsed.request.n)
    fields.fail("best_of", "is not supported beside n: all n answers are returned", "unsupported_parameter");
  fields.finish(unknown_fields(bounds, &parsed.ignored_fields));
  return parsed;
}

namespace {

// A chat's text is bounded by the session; the tokens of this one all go back to the client.
void check_tokenize_length(const Request& request, const RequestBounds& bounds, FieldReader* fields) {
  size_t characters = 0;
  for (const Message& message : request.messages)
    for (const ContentPart& part : message.content) characters += character_count(part.text);
  if (characters > static_cast<size_t>(bounds.max_tokenize_characters))
    fields->fail("messages", "have " + std::to_string(characters) + " characters; at most " +
                                 std::to_string(bounds.max_tokenize_characters));
}

}  // namespace

TokenizeRequest parse_tokenize(std::string_view body, const ServedModel& model, const RequestBounds& bounds,
                               ApiError* error) {
  TokenizeRequest tokenize;
  const Json json = parse_body(body, bounds, error);
  FieldReader fields(json, "", error);
  if (fields.failed()) return tokenize;
  read_model(fields, model, error);
  tokenize.with_pieces = fields.boolean("return_token_strs").value_or(false);
  if (fields.has("messages")) {
    fields.refuse("prompt", "send prompt or messages, not both");
    read_messages(fields, bounds, &tokenize.parsed, error);
    check_tokenize_length(tokenize.parsed.request, bounds, &fields);
  } else {
    tokenize.parsed.chat = false;
    const auto most = static_cast<size_t>(bounds.max_tokenize_characters);
    tokenize.parsed.request.prompt = fields.string("prompt", most).value_or("");
    if (!fields.has("prompt")) fields.fail("prompt", "is missing; expected prompt or messages");
  }
  fields.finish(unknown_fields(bounds, &tokenize.parsed.ignored_fields));
  return tokenize;
}

DetokenizeRequest parse_detokenize(std::string_view body, const ServedModel& model, const RequestBounds& bounds,
                                   ApiError* error) {
  DetokenizeRequest detokenize;
  const Json json = parse_body(body, bounds, error);
  FieldReader fields(json, "", error);
  if (fields.failed()) return detokenize;
  read_model(fields, model, error);
  const Json* tokens = fields.find("tokens");
  if (!tokens || !tokens->is_array()) {
    fields.fail("tokens", "is missing; expected a list of token ids");
  } else if (static_cast<int64_t>(tokens->as_array().size()) > bounds.max_token_ids) {
    fields.fail("tokens", "has " + std::to_string(tokens->as_array().size()) + " ids; at most " +
                              std::to_string(bounds.max_token_ids));
  } else {
    for (const Json& token : tokens->as_array()) {
      if (!token.fits_int64() || token.as_int64() < 0 ||
          token.as_int64() > std::numeric_limits<int32_t>::max()) {
        fields.fail("tokens", "holds " + shown(token) + "; expected token ids");
        break;
      }
      detokenize.ids.push_back(static_cast<int32_t>(token.as_int64()));
    }
  }
  fields.finish(unknown_fields(bounds, &detokenize.ignored_fields));
  return detokenize;
}

}  // namespace tessera::server
