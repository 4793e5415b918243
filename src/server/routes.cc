#include "server/routes.h"

#include <algorithm>

#include "server/ascii_text.h"
#include "server/log.h"

namespace tessera::server {
namespace {

constexpr Route kRoutes[] = {
    {.path = "/", .get = get_page},
    {.path = "/page/app.js", .get = get_page_file},
    {.path = "/page/markdown.js", .get = get_page_file},
    {.path = "/page/tile_grid.js", .get = get_page_file},
    {.path = "/page/style.css", .get = get_page_file},
    {.path = "/health", .get = get_health, .open = true},
    {.path = "/ready", .get = get_ready},
    {.path = "/version", .get = get_version},
    {.path = "/metrics", .get = get_metrics},
    {.path = "/stats", .get = get_stats, .needs_engine = true},
    {.path = "/openapi.json", .get = get_openapi},
    {.path = "/v1/models", .get = get_models},
    {.path = "/v1/chat/completions", .post = post_chat_completions, .needs_engine = true},
    {.path = "/v1/completions", .post = post_completions, .needs_engine = true},
    {.path = "/tokenize", .post = post_tokenize, .needs_engine = true},
    {.path = "/detokenize", .post = post_detokenize, .needs_engine = true},
};

const Route* find_route(const std::string& path) {
  for (const Route& route : kRoutes)
    if (path == route.path) return &route;
  return nullptr;
}

const char* allowed_methods(const Route& route) {
  return route.get ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
}

// The host without its port; brackets stay.
std::string host_name(const std::string& host) {
  const size_t bracket = host.rfind(']');
  const size_t colon = host.find(':', bracket == std::string::npos ? 0 : bracket);
  return lower_case(host.substr(0, colon));
}

bool is_address(const std::string& name) {
  return !name.empty() && (name[0] == '[' || name.find_first_not_of("0123456789.") == std::string::npos);
}

// A page of another site can make a browser send requests here under that site's name (DNS rebinding). Names
// are therefore only taken when they are loopback's or were allowed; addresses can't be rebound. Keys make
// this needless.
bool host_allowed(const Endpoints& endpoints, const HttpRequest& head) {
  const std::string* host = head.header("host");
  if (!host || endpoints.keys.required()) return true;  // HTTP/1.0 has none; browsers always send it
  const std::string name = host_name(*host);
  if (name == "localhost" || is_address(name)) return true;
  const auto& allowed = endpoints.options.allowed_hosts;
  return std::any_of(allowed.begin(), allowed.end(),
                     [&](const std::string& entry) { return entry == "*" || lower_case(entry) == name; });
}

bool json_content(const HttpRequest& head) {
  const std::string* type = head.header("content-type");
  if (!type) return false;
  std::string media = lower_case(type->substr(0, type->find(';')));
  while (!media.empty() && media.back() == ' ') media.pop_back();
  return media == "application/json";
}

std::optional<ApiError> check_post(const Endpoints& endpoints, const Route& route, const HttpRequest& head) {
  if (!json_content(head))
    return ApiError{415, "[http] Content-Type must be application/json", "", "unsupported_media_type"};
  if (const std::string* encoding = head.header("content-encoding");
      encoding && lower_case(*encoding) != "identity")
    return ApiError{415, "[http] Content-Encoding is not supported; send the body as it is", "",
                    "unsupported_media_type"};
  if (endpoints.draining)
    return ApiError{503, "[serve] the server is shutting down; send the request again", "", "unavailable", 5};
  (void)route;
  return std::nullopt;
}

ApiError not_authorized(bool page) {
  ApiError error{401, "[serve] an API key is needed: Authorization: Bearer KEY", "", "invalid_api_key"};
  if (page) error.message += " (in a browser: any name, and the key as the password)";
  return error;
}

std::optional<HttpResponse> check(Endpoints& endpoints, const HttpRequest& head) {
  const Route* route = find_route(head.path);
  const bool model_path = head.path.rfind("/v1/models/", 0) == 0;
  if (!host_allowed(endpoints, head))
    return error_response({400,
                           "[http] Host " + host_name(*head.header("host")).substr(0, 100) +
                               " is not this server's; add it with --allowed-host",
                           "", "unknown_host"});
  if (!(route && route->open) && !endpoints.keys.identify(head)) {
    HttpResponse response = error_response(not_authorized(head.path == "/"));
    if (head.path == "/") response.headers.back().second = "Basic realm=\"tessera\"";
    return response;
  }
  if (!route && !model_path)
    return error_response(
        {404, "[http] no such path; GET /openapi.json lists what there is", "", "not_found"});
  static constexpr Route kModel{.path = "/v1/models/{model}", .get = get_models};
  if (!route) route = &kModel;
  if (head.method == "OPTIONS") {
    HttpResponse response{204, "", "", {{"Allow", allowed_methods(*route)}}};
    return response;
  }
  const bool method_fits = route->get ? head.method == "GET" || head.method == "HEAD" : head.method == "POST";
  if (!method_fits) {
    HttpResponse response = error_response(
        {405, "[http] this path takes " + std::string(allowed_methods(*route)), "", "method_not_allowed"});
    response.headers.emplace_back("Allow", allowed_methods(*route));
    return response;
  }
  if (route->post)
    if (auto error = check_post(endpoints, *route, head)) return error_response(*error);
  if (route->needs_engine && !endpoints.engine.load())
    return error_response({503, "[serve] the model is still loading", "", "unavailable", 1});
  return std::nullopt;
}

const char* route_label(const std::string& path) {
  if (const Route* route = find_route(path)) return route->path;
  return path.rfind("/v1/models/", 0) == 0 ? "/v1/models/{model}" : "other";
}

}  // namespace

std::span<const Route> routes() {
  return kRoutes;
}

std::optional<HttpResponse> check_head(Endpoints& endpoints, const HttpRequest& head) {
  auto refusal = check(endpoints, head);
  if (!refusal) return std::nullopt;
  endpoints.metrics.count_response(route_label(head.path), refusal->status);
  log_debug("refused", {{"id", head.id}, {"path", route_label(head.path)}, {"status", refusal->status}});
  return refusal;
}

void respond(Endpoints& endpoints, Exchange& exchange, HttpResponse response) {
  const HttpRequest& request = exchange.request();
  endpoints.metrics.count_response(route_label(request.path), response.status);
  log_debug("request",
            {{"id", request.id}, {"path", route_label(request.path)}, {"status", response.status}});
  exchange.respond(std::move(response));
}

void handle(Endpoints& endpoints, std::shared_ptr<Exchange> exchange) {
  const HttpRequest& request = exchange->request();
  const Route* route = find_route(request.path);
  if (!route || route->get)
    return respond(endpoints, *exchange, (route ? route->get : get_models)(endpoints, request));
  auto work = [&endpoints, route, exchange] {
    try {
      route->post(endpoints, exchange);
    } catch (const std::exception& error) {  // memory, most likely; this request ends, the server goes on
      log_error("request_failed", {{"id", exchange->request().id}, {"error", error.what()}});
      respond(endpoints, *exchange,
              error_response({500, "[serve] internal error; the log has it under this request's id", "",
                              "internal_error"}));
    }
  };
  if (!endpoints.workers.post(std::move(work)))
    respond(endpoints, *exchange,
            error_response({429, "[serve] too many requests are waiting to be read; try again later", "",
                            "queue_full", 1}));
}

}  // namespace tessera::server
