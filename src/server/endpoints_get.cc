#include <ctime>

#include "server/embedded_files.h"
#include "server/json_text.h"
#include "server/routes.h"
#include "tessera/version.h"

namespace tessera::server {
namespace {

HttpResponse json_response(const Json& body) {
  HttpResponse response;
  response.body = body.dump();
  return response;
}

HttpResponse page_response(std::string_view name, const char* type) {
  HttpResponse response;
  response.content_type = type;
  response.body = std::string(embedded_file(name));
  // Scripts, styles and connections only from here; pictures also from what the user dropped in (blob:).
  response.headers = {
      {"Content-Security-Policy",
       "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: "
       "data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
      {"X-Content-Type-Options", "nosniff"},
      {"X-Frame-Options", "DENY"},
      {"Referrer-Policy", "no-referrer"},
      {"Cross-Origin-Opener-Policy", "same-origin"},
      {"Cross-Origin-Resource-Policy", "same-origin"},
      {"Cache-Control", "no-cache"}};
  return response;
}

Json model_object(Endpoints& endpoints, const ModelInfo* info) {
  Json model = Json::object();
  model.set("id", endpoints.model_name());
  model.set("object", "model");
  model.set("created", endpoints.started);
  model.set("owned_by", "tessera");
  if (info) model.set("max_model_len", info->session_len);
  return model;
}

Json memory_lines(const EngineStats& stats) {
  Json lines = Json::array();
  for (const auto& [name, planned] : stats.memory_planned) {
    Json line = Json::object();
    line.set("name", name);
    line.set("planned_bytes", planned);
    for (const auto& [used_name, used] : stats.memory_used)
      if (used_name == name) line.set("used_bytes", used);
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace

HttpResponse get_page(Endpoints&, const HttpRequest&) {
  return page_response("index.html", "text/html; charset=utf-8");
}

HttpResponse get_page_file(Endpoints&, const HttpRequest& request) {
  const std::string_view name = std::string_view(request.path).substr(std::string_view("/page/").size());
  return page_response(name,
                       name.ends_with(".css") ? "text/css; charset=utf-8" : "text/javascript; charset=utf-8");
}

HttpResponse get_health(Endpoints&, const HttpRequest&) {
  Json body = Json::object();
  body.set("status", "ok");
  return json_response(body);
}

HttpResponse get_ready(Endpoints& endpoints, const HttpRequest&) {
  if (endpoints.draining)
    return error_response({503, "[serve] the server is shutting down", "", "unavailable", 5});
  if (!endpoints.engine.load())
    return error_response({503, "[serve] the model is still loading", "", "unavailable", 1});
  Json body = Json::object();
  body.set("status", "ready");
  body.set("model", endpoints.model_name());
  return json_response(body);
}

HttpResponse get_version(Endpoints&, const HttpRequest&) {
  Json body = Json::object();
  body.set("version", kVersion);
  return json_response(body);
}

HttpResponse get_models(Endpoints& endpoints, const HttpRequest& request) {
  Engine* engine = endpoints.engine.load();
  std::optional<ModelInfo> info;
  if (engine) info = engine->model();
  const std::string prefix = "/v1/models/";
  if (request.path.rfind(prefix, 0) == 0) {
    const std::string name = request.path.substr(prefix.size());
    if (name != endpoints.model_name())
      return error_response({404, "[serve] model \"" + name.substr(0, 200) + "\" is not served here", "model",
                             "model_not_found"});
    return json_response(model_object(endpoints, info ? &*info : nullptr));
  }
  Json list = Json::object();
  list.set("object", "list");
  Json data = Json::array();
  data.push_back(model_object(endpoints, info ? &*info : nullptr));
  list.set("data", std::move(data));
  return json_response(list);
}

HttpResponse get_metrics(Endpoints& endpoints, const HttpRequest&) {
  Metrics::Gauges gauges = endpoints.gauges();
  std::optional<EngineStats> stats;
  if (Engine* engine = endpoints.engine.load()) stats = engine->stats();
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = endpoints.metrics.render(endpoints.model_name(), stats ? &*stats : nullptr, gauges);
  return response;
}

// What the page shows live, and what it needs to know of the model; numbers only.
HttpResponse get_stats(Endpoints& endpoints, const HttpRequest&) {
  Engine* engine = endpoints.engine.load();
  const ModelInfo info = engine->model();
  const EngineStats stats = engine->stats();
  Json model = Json::object();
  model.set("name", endpoints.model_name());
  model.set("session_len", info.session_len);
  model.set("tokens_per_tile", info.tokens_per_tile);
  model.set("image_size", info.image_size);
  model.set("min_dynamic_patch", info.min_dynamic_patch);
  model.set("max_dynamic_patch", info.max_dynamic_patch);
  model.set("use_thumbnail", info.use_thumbnail);
  model.set("max_tiles_per_request", info.max_tiles_per_request);
  model.set("max_images_per_request", endpoints.options.bounds.max_images);
  Json body = Json::object();
  body.set("model", std::move(model));
  body.set("running", stats.running);
  body.set("waiting", stats.waiting);
  body.set("preparing", stats.preparing);
  body.set("kv_blocks_total", stats.kv_blocks_total);
  body.set("kv_blocks_used", stats.kv_blocks_used);
  body.set("kv_blocks_cached", stats.kv_blocks_cached);
  body.set("prompt_tokens", stats.prompt_tokens);
  body.set("generated_tokens", stats.generated_tokens);
  body.set("memory", memory_lines(stats));
  HttpResponse response = json_response(body);
  response.headers.emplace_back("Cache-Control", "no-store");
  return response;
}

HttpResponse get_openapi(Endpoints& endpoints, const HttpRequest&) {
  // @MODEL@ and @VERSION@ are the only places that depend on what is served.
  std::string text(embedded_file("openapi.json"));
  std::string name;
  append_json_string(name, endpoints.model_name());
  auto replace = [&text](const std::string& mark, const std::string& value) {
    for (size_t at = 0; (at = text.find(mark, at)) != std::string::npos; at += value.size())
      text.replace(at, mark.size(), value);
  };
  replace("\"@MODEL@\"", name);
  replace("@VERSION@", kVersion);
  HttpResponse response;
  response.body = std::move(text);
  return response;
}

}  // namespace tessera::server
