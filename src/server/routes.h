#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "server/answer.h"
#include "server/auth.h"
#include "server/limits.h"
#include "server/metrics.h"
#include "server/server.h"
#include "server/worker_pool.h"

namespace tessera::server {

/// What the endpoints work with. Filled before the listener opens; `engine` is set when the model is ready.
struct Endpoints {
  explicit Endpoints(const ServerOptions& given)
      : options(given),
        slots(std::make_shared<ClientSlots>(given.max_requests_per_client)),
        workers(given.workers, given.max_parse_queue),
        fetchers(given.fetchers, 256) {}

  const ServerOptions options;
  ApiKeys keys;
  Metrics metrics;
  ActiveAnswers active;
  std::shared_ptr<ClientSlots> slots;
  std::atomic<Engine*> engine{nullptr};
  std::atomic<bool> draining{false};
  std::function<Metrics::Gauges()> gauges;
  std::function<std::string()> model_name;
  int64_t started = 0;  ///< seconds since 1970
  WorkerPool workers;
  WorkerPool fetchers;

  AnswerContext answer_context() {
    return {.engine = engine.load(), .metrics = &metrics, .active = &active, .draining = &draining};
  }
};

/// One path of the server. `get` answers on the connection's strand and must be quick; `post` runs on a
/// worker.
struct Route {
  const char* path;
  HttpResponse (*get)(Endpoints&, const HttpRequest&) = nullptr;
  void (*post)(Endpoints&, std::shared_ptr<Exchange>) = nullptr;
  bool needs_engine = false;
  bool open = false;  ///< answers without a key
};

std::span<const Route> routes();

/// Refuses what the head alone shows to be wrong: host, key, path, method, content type, a model that isn't
/// there.
std::optional<HttpResponse> check_head(Endpoints& endpoints, const HttpRequest& head);

/// Answers a request that check_head let pass.
void handle(Endpoints& endpoints, std::shared_ptr<Exchange> exchange);

/// Responds and counts.
void respond(Endpoints& endpoints, Exchange& exchange, HttpResponse response);

// The endpoints' functions (endpoints_get.cc, endpoints_post.cc).
HttpResponse get_page(Endpoints&, const HttpRequest&);
HttpResponse get_page_file(Endpoints&, const HttpRequest&);
HttpResponse get_health(Endpoints&, const HttpRequest&);
HttpResponse get_ready(Endpoints&, const HttpRequest&);
HttpResponse get_version(Endpoints&, const HttpRequest&);
HttpResponse get_models(Endpoints&, const HttpRequest&);
HttpResponse get_metrics(Endpoints&, const HttpRequest&);
HttpResponse get_stats(Endpoints&, const HttpRequest&);
HttpResponse get_openapi(Endpoints&, const HttpRequest&);
void post_chat_completions(Endpoints&, std::shared_ptr<Exchange>);
void post_completions(Endpoints&, std::shared_ptr<Exchange>);
void post_tokenize(Endpoints&, std::shared_ptr<Exchange>);
void post_detokenize(Endpoints&, std::shared_ptr<Exchange>);

}  // namespace tessera::server
