#include <chrono>
#include <cmath>
#include <cstdlib>
#include <ctime>

#include "server/json_text.h"
#include "server/log.h"
#include "server/routes.h"

namespace tessera::server {
namespace {

using Clock = std::chrono::steady_clock;
using Parser = ParsedRequest (*)(std::string_view, const ServedModel&, const RequestBounds&, ApiError*);

ServedModel served(Endpoints& endpoints) {
  return {endpoints.model_name(), endpoints.options.model_path};
}

// The body's memory goes as soon as it has been read; its lease stays while the pictures that came in it wait for others.
void drop_body(HttpRequest& request) {
  std::string().swap(request.body);
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

// With --lenient: the header that says which fields had no effect.
void name_ignored(Headers& headers, const std::vector<std::string>& fields) {
  if (fields.empty()) return;
  std::string text;
  for (const std::string& field : fields) {
    if (!text.empty()) text += ", ";
    if (text.size() > 512) {
      text += "...";
      break;
    }
    for (char c : field) text += c > 0x20 && c < 0x7F ? c : '?';
  }
  headers.emplace_back("X-Tessera-Ignored-Fields", std::move(text));
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
  name_ignored(plan.headers, parsed.ignored_fields);
  return plan;
}

// Who asks, and the place that the request takes of what this client may have under way.
struct Admission {
  Client client;
  std::shared_ptr<void> slot;
};

// Nothing when it has been refused.
std::optional<Admission> admit(Endpoints& endpoints, Exchange& exchange) {
  auto client = endpoints.keys.identify(exchange.request());
  if (!client) {
    refuse(endpoints, exchange, {401, "[serve] the API key was withdrawn", "", "invalid_api_key"});
    return std::nullopt;
  }
  auto slot = endpoints.slots->acquire(client->name);
  if (!slot) {
    refuse(endpoints, exchange,
           {429,
            "[serve] this client has " + std::to_string(endpoints.slots->most()) +
                " requests under way, the limit (--max-requests-per-client)",
            "", "rate_limit_exceeded", 1});
    return std::nullopt;
  }
  return Admission{std::move(*client), std::move(slot)};
}

// A request on its way to the engine: the time that it has, and whether somebody still waits for it.
struct Waiting {
  std::optional<Clock::time_point> deadline;
  std::shared_ptr<std::atomic<bool>> gone = std::make_shared<std::atomic<bool>>(false);

  Clock::duration left() const { return deadline ? *deadline - Clock::now() : Clock::duration::max(); }
};

Waiting waiting_for(Endpoints& endpoints, Exchange& exchange, std::optional<double> seconds) {
  Waiting waiting;
  if (seconds)
    waiting.deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(*seconds));
  exchange.on_close([gone = waiting.gone, &metrics = endpoints.metrics] {
    *gone = true;
    ++metrics.disconnects;
  });
  return waiting;
}

constexpr const char* kTooLate = "[serve] the request's deadline passed while its pictures were fetched";

// Runs on a fetcher: the pictures that are elsewhere, one after the other, in the request's own time. All together may
// have as many bytes as a body that carried them.
ApiError fetch_images(const ServerOptions& options, const Waiting& waiting, ParsedRequest& parsed) {
  const uint64_t most = options.listen.limits.max_body_bytes;
  uint64_t total = 0;
  for (const RemoteImage& remote : parsed.remote_images) {
    if (*waiting.gone) return {499, "[serve] the client has gone", "", "cancelled"};
    MediaPolicy policy = options.media;
    policy.timeout = std::min(policy.timeout, std::chrono::ceil<std::chrono::milliseconds>(waiting.left()));
    auto bytes = load_media(remote.url, policy);
    if (waiting.left() <= Clock::duration::zero()) return {408, kTooLate, "", "deadline_exceeded"};
    if (!bytes.ok() && bytes.status().code() == StatusCode::kUnavailable)
      return api_error(bytes.status().with_context("[media]"));
    if (!bytes.ok()) return {400, "[media] " + bytes.status().message(), remote.param, "invalid_image_url"};
    total += bytes->size();
    if (total > most)
      return {400,
              "[media] the pictures of this request have more than " + std::to_string(most) +
                  " bytes together, the bound of a body (--max-body-bytes)",
              remote.param, "invalid_image_url"};
    parsed.request.images.at(static_cast<size_t>(remote.image)).bytes = std::move(bytes).value();
  }
  return {};
}

// Calls `next` with the request's pictures in place: at once, or on a fetcher when some are elsewhere.
void with_images(Endpoints& endpoints, std::shared_ptr<Exchange> exchange, std::shared_ptr<ParsedRequest> parsed,
                 const Waiting& waiting, std::function<void()> next) {
  if (parsed->remote_images.empty()) {
    exchange->request().body_lease.reset();
    return next();
  }
  auto work = [&endpoints, exchange, parsed, waiting, next = std::move(next)] {
    try {
      const ApiError error = fetch_images(endpoints.options, waiting, *parsed);
      if (error.failed()) return refuse(endpoints, *exchange, error);
      exchange->request().body_lease.reset();
      next();
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
  auto admission = admit(endpoints, *exchange);
  if (!admission) return;
  ApiError error;
  auto parsed =
      std::make_shared<ParsedRequest>(parse(http.body, served(endpoints), endpoints.options.bounds, &error));
  drop_body(http);
  const auto seconds = error.failed() ? std::nullopt : deadline(endpoints, http, &error);
  if (error.failed()) return refuse(endpoints, *exchange, error);
  const Waiting waiting = waiting_for(endpoints, *exchange, seconds);
  parsed->request.id = http.id;
  parsed->request.client = admission->client.name;
  parsed->request.cache_salt = cache_salt(admission->client, parsed->request.cache_salt);
  AnswerPlan plan = make_plan(endpoints, http, *parsed, admission->client);
  plan.slot = std::move(admission->slot);
  with_images(endpoints, exchange, parsed, waiting,
              [&endpoints, exchange, parsed, waiting, plan = std::move(plan)]() mutable {
                if (waiting.deadline)
                  parsed->request.deadline_s = std::chrono::duration<double>(waiting.left()).count();
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
  auto admission = admit(endpoints, *exchange);
  if (!admission) return;
  ApiError error;
  TokenizeRequest wanted = parse_tokenize(http.body, served(endpoints), endpoints.options.bounds, &error);
  drop_body(http);
  const auto seconds = error.failed() ? std::nullopt : deadline(endpoints, http, &error);
  if (error.failed()) return refuse(endpoints, *exchange, error);
  auto parsed = std::make_shared<ParsedRequest>(std::move(wanted.parsed));
  const Waiting waiting = waiting_for(endpoints, *exchange, seconds);
  with_images(endpoints, exchange, parsed, waiting, [&endpoints, exchange, parsed, pieces = wanted.with_pieces,
                                                     slot = std::move(admission->slot)] {
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
    name_ignored(response.headers, parsed->ignored_fields);
    respond(endpoints, *exchange, std::move(response));
  });
}

void post_detokenize(Endpoints& endpoints, std::shared_ptr<Exchange> exchange) {
  HttpRequest& http = exchange->request();
  const auto admission = admit(endpoints, *exchange);
  if (!admission) return;
  ApiError error;
  const DetokenizeRequest wanted = parse_detokenize(http.body, served(endpoints), endpoints.options.bounds, &error);
  drop_body(http);
  if (error.failed()) return refuse(endpoints, *exchange, error);
  auto [text, status] = endpoints.engine.load()->detokenize(wanted.ids);
  if (!status.ok()) return refuse(endpoints, *exchange, api_error(status));
  HttpResponse response;
  name_ignored(response.headers, wanted.ignored_fields);
  response.body = "{\"prompt\":";
  append_json_string(response.body, text);
  response.body += '}';
  respond(endpoints, *exchange, std::move(response));
}

}  // namespace tessera::server
