#include <cmath>
#include <cstdlib>
#include <ctime>

#include "server/json_text.h"
#include "server/log.h"
#include "server/routes.h"

namespace tessera::server {
namespace {

using Parser = ParsedRequest (*)(std::string_view, const ServedModel&, const RequestBounds&, ApiError*);

ServedModel served(Endpoints& endpoints) {
  return {endpoints.model_name(), endpoints.options.model_path};
}

// The body's memory goes as soon as it has been read.
void drop_body(HttpRequest& request) {
  std::string().swap(request.body);
  request.body_lease.reset();
}

void refuse(Endpoints& endpoints, Exchange& exchange, const ApiError& error) {
  respond(endpoints, exchange, error_response(error));
}

// Seconds until the deadline: the server's own, or less when the client asks for less.
std::optional<double> deadline(const Endpoints& endpoints, const HttpRequest& request, ApiError* error) {
  double seconds = endpoints.options.request_timeout_s > 0 ? endpoints.options.request_timeout_s : HUGE_VAL;
  if (const std::string* wish = request.header("x-request-timeout")) {
    char* end = nullptr;
    const double value = std::strtod(wish->c_str(), &end);
    const bool plain = !wish->empty() && wish->find_first_not_of("0123456789.") == std::string::npos;
    if (!plain || *end != '\0' || !(value > 0 && value <= 86400)) {
      *error = {400, "[request] X-Request-Timeout is no number of seconds in (0, 86400]", "X-Request-Timeout",
                "invalid_value"};
      return std::nullopt;
    }
    seconds = std::min(seconds, value);
  }
  return std::isfinite(seconds) ? std::optional(seconds) : std::nullopt;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) {
    if (text.size() > 512) return text + ", ...";
    if (!text.empty()) text += ", ";
    for (char c : word) text += c > 0x20 && c < 0x7F ? c : '?';  // it becomes a header
  }
  return text;
}

// Caches are keyed by it: unequal tenants share nothing, whatever salts they send.
std::string cache_salt(const Client& client, const std::string& salt) {
  if (client.tenant.empty()) return salt;
  std::string both = client.tenant;
  both += ':';
  return both += salt;
}

AnswerPlan make_plan(Endpoints& endpoints, const HttpRequest& http, const ParsedRequest& parsed,
                     const Client& client) {
  AnswerPlan plan;
  plan.shape.chat = parsed.chat;
  plan.shape.include_usage = parsed.include_usage;
  plan.shape.logprobs = parsed.request.logprobs >= 0;
  plan.shape.id = (parsed.chat ? "chatcmpl-" : "cmpl-") + http.id;
  plan.shape.model = endpoints.model_name();
  plan.shape.created = std::time(nullptr);
  plan.stream = parsed.stream;
  plan.n = parsed.request.n;
  plan.top_logprobs = parsed.request.logprobs;
  plan.client = client.name;
  plan.path = http.path;
  if (!parsed.ignored_fields.empty())
    plan.headers.emplace_back("X-Tessera-Ignored-Fields", joined(parsed.ignored_fields));
  return plan;
}

// Runs on a fetcher: the pictures that are elsewhere, then `next`.
bool fetch_images(Endpoints& endpoints, const std::shared_ptr<Exchange>& exchange, ParsedRequest& parsed) {
  for (const RemoteImage& remote : parsed.remote_images) {
    auto bytes = load_media(remote.url, endpoints.options.media);
    if (!bytes.ok()) {
      refuse(endpoints, *exchange,
             {400, "[media] " + bytes.status().message(), remote.param, "invalid_image_url"});
      return false;
    }
    parsed.request.images.at(static_cast<size_t>(remote.image)).bytes = std::move(bytes).value();
  }
  return true;
}

// Calls `next` with the request's pictures in place: at once, or on a fetcher when some are elsewhere.
void with_images(Endpoints& endpoints, std::shared_ptr<Exchange> exchange,
                 std::shared_ptr<ParsedRequest> parsed, std::function<void()> next) {
  if (parsed->remote_images.empty()) return next();
  auto work = [&endpoints, exchange, parsed, next = std::move(next)] {
    try {
      if (fetch_images(endpoints, exchange, *parsed)) next();
    } catch (const std::exception& error) {
      log_error("request_failed", {{"id", exchange->request().id}, {"error", error.what()}});
      refuse(endpoints, *exchange,
             {500, "[serve] internal error; the log has it under this request's id", "", "internal_error"});
    }
  };
  if (!endpoints.fetchers.post(std::move(work)))
    refuse(endpoints, *exchange,
           {429, "[serve] too many pictures are being fetched; try again later", "", "queue_full", 1});
}

void post_answer(Endpoints& endpoints, std::shared_ptr<Exchange> exchange, Parser parse) {
  HttpRequest& http = exchange->request();
  ApiError error;
  auto client = endpoints.keys.identify(http);
  if (!client)
    return refuse(endpoints, *exchange, {401, "[serve] the API key was withdrawn", "", "invalid_api_key"});
  auto slot = endpoints.slots->acquire(client->name);
  if (!slot)
    return refuse(endpoints, *exchange,
                  {429,
                   "[serve] this client has " + std::to_string(endpoints.slots->most()) +
                       " requests under way, the limit (--max-requests-per-client)",
                   "", "rate_limit_exceeded", 1});
  auto parsed =
      std::make_shared<ParsedRequest>(parse(http.body, served(endpoints), endpoints.options.bounds, &error));
  drop_body(http);
  if (!error.failed()) parsed->request.deadline_s = deadline(endpoints, http, &error);
  if (error.failed()) return refuse(endpoints, *exchange, error);
  parsed->request.id = http.id;
  parsed->request.client = client->name;
  parsed->request.cache_salt = cache_salt(*client, parsed->request.cache_salt);
  AnswerPlan plan = make_plan(endpoints, http, *parsed, *client);
  plan.slot = std::move(slot);
  with_images(endpoints, exchange, parsed, [&endpoints, exchange, parsed, plan = std::move(plan)]() mutable {
    auto answer = std::make_shared<Answer>(endpoints.answer_context(), std::move(plan), exchange);
    answer->submit(std::move(parsed->request));
  });
}

}  // namespace

void post_chat_completions(Endpoints& endpoints, std::shared_ptr<Exchange> exchange) {
  post_answer(endpoints, std::move(exchange), parse_chat_completion);
}

void post_completions(Endpoints& endpoints, std::shared_ptr<Exchange> exchange) {
  post_answer(endpoints, std::move(exchange), parse_completion);
}

void post_tokenize(Endpoints& endpoints, std::shared_ptr<Exchange> exchange) {
  HttpRequest& http = exchange->request();
  ApiError error;
  TokenizeRequest wanted = parse_tokenize(http.body, served(endpoints), endpoints.options.bounds, &error);
  drop_body(http);
  if (error.failed()) return refuse(endpoints, *exchange, error);
  auto parsed = std::make_shared<ParsedRequest>(std::move(wanted.parsed));
  with_images(endpoints, exchange, parsed, [&endpoints, exchange, parsed, pieces = wanted.with_pieces] {
    Engine* engine = endpoints.engine.load();
    auto [ids, status] = engine->tokenize(parsed->request);
    if (!status.ok()) return refuse(endpoints, *exchange, api_error(status));
    std::string body = "{\"count\":" + std::to_string(ids.size()) +
                       ",\"max_model_len\":" + std::to_string(engine->model().session_len) + ",\"tokens\":[";
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i) body += ',';
      body += std::to_string(ids[i]);
    }
    body += "],\"token_strs\":";
    if (pieces) {
      body += '[';
      for (size_t i = 0; i < ids.size(); ++i) {
        if (i) body += ',';
        append_json_string(body, engine->piece(ids[i]));
      }
      body += "]}";
    } else {
      body += "null}";
    }
    HttpResponse response;
    response.body = std::move(body);
    if (!parsed->ignored_fields.empty())
      response.headers.emplace_back("X-Tessera-Ignored-Fields", joined(parsed->ignored_fields));
    respond(endpoints, *exchange, std::move(response));
  });
}

void post_detokenize(Endpoints& endpoints, std::shared_ptr<Exchange> exchange) {
  HttpRequest& http = exchange->request();
  ApiError error;
  const auto ids = parse_detokenize(http.body, served(endpoints), endpoints.options.bounds, &error);
  drop_body(http);
  if (error.failed()) return refuse(endpoints, *exchange, error);
  auto [text, status] = endpoints.engine.load()->detokenize(ids);
  if (!status.ok()) return refuse(endpoints, *exchange, api_error(status));
  HttpResponse response;
  response.body = "{\"prompt\":";
  append_json_string(response.body, text);
  response.body += '}';
  respond(endpoints, *exchange, std::move(response));
}

}  // namespace tessera::server
