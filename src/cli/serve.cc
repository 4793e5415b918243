#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <thread>

#include "cli/arg_parser.h"
#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "server/echo_engine.h"
#include "server/log.h"
#include "server/server.h"
#include "tessera/options.h"

namespace tessera::cli {
namespace {

constexpr const char* kEcho = "mock:echo";

struct ServeOptions {
  EngineFlags engine;
  server::ServerOptions server;
  int64_t port = 8000, http_threads = 2, workers = 2, max_connections = 1024, max_images = 64;
  int64_t json_depth = 64, max_header = 16 << 10;
  std::optional<int64_t> max_body, max_image, max_unread;
  double drain_timeout_s = 30, media_timeout_s = 10;
  double header_timeout_s = 10, body_timeout_s = 120, write_timeout_s = 30, idle_timeout_s = 75;
  std::string log_level = "info";
  bool log_json = false;
};

void add_server_options(ArgParser& parser, ServeOptions* o) {
  server::ServerOptions& s = o->server;
  parser.group("Address");
  parser.option("--host", &s.listen.host,
                "address to listen on; other than loopback, think of --api-key-file");
  parser.option("--port", &o->port, 0, 65535, "0: any free one, which is printed");
  parser.list("--allowed-host", &s.allowed_hosts,
              "Host name under which a proxy sends requests here; addresses and localhost are always taken, "
              "* takes all");
  parser.option("--served-model-name", &s.model_name, "the model's name in the API");
  parser.group("Access");
  parser.option("--api-key-file", &s.api_key_file,
                "one key a line; read again on SIGHUP; guards all but /health");
  parser.option("--allowed-local-media-path", &s.media.local_path,
                "file: URLs below this directory are read");
  parser.list("--allowed-media-domains", &s.media.domains,
              "host, *.host or host:port that pictures may be fetched from");
  parser.option("--media-timeout", &o->media_timeout_s, 0.1, 600, "seconds for fetching one picture");
  parser.bytes("--max-media-bytes", &o->max_image, "of one fetched picture (default 64MiB)");
  parser.group("Bounds");
  parser.bytes("--max-body-bytes", &o->max_body, "of one request (default 64MiB)");
  parser.bytes("--max-unread-bytes", &o->max_unread,
               "of a stream whose client does not read, then it is cut off (default 1MiB)");
  parser.option("--max-header-bytes", &o->max_header, 1024, 1 << 20, "of one request");
  parser.option("--max-json-depth", &o->json_depth, 4, 1000, "nesting of a request's JSON");
  parser.option("--max-images", &o->max_images, 0, 1024, "pictures of one request");
  parser.option("--max-queue", &o->engine.options.max_queue, 1, 1000000,
                "requests that wait for a place in the batch; more get 429");
  parser.option("--max-connections", &o->max_connections, 1, 1000000, "open at once; more get 503");
  parser.option("--max-requests-per-client", &s.max_requests_per_client, 0, 1000000,
                "under way at once for one key, or one address; more get 429; 0: no bound");
  parser.option("--header-timeout", &o->header_timeout_s, 0.1, 3600,
                "seconds for a request's header to arrive");
  parser.option("--body-timeout", &o->body_timeout_s, 0.1, 3600,
                "seconds for a request's body to arrive; a pause of an eighth of it ends it, too");
  parser.option("--write-timeout", &o->write_timeout_s, 0.1, 3600,
                "seconds without the client taking a byte, or for each MiB of a whole answer");
  parser.option("--idle-timeout", &o->idle_timeout_s, 0.1, 3600,
                "seconds between two requests of a connection");
  parser.option("--request-timeout", &s.request_timeout_s, 0, 86400,
                "seconds for one request, then 408; 0: no bound");
  parser.option("--drain-timeout", &o->drain_timeout_s, 0, 86400,
                "seconds that SIGTERM waits for requests under way");
  parser.flag("--lenient", &s.bounds.lenient,
              "ignore unknown fields of requests; X-Tessera-Ignored-Fields names them");
  parser.group("Process");
  parser.option("--http-threads", &o->http_threads, 1, 64, "threads that carry connections");
  parser.option("--http-workers", &o->workers, 1, 64, "threads that read requests' bodies");
  parser.choice("--log-level", &o->log_level, {"debug", "info", "warning", "error", "off"},
                "what is logged on stderr");
  parser.flag("--log-json", &o->log_json, "one JSON object a line");
}

// The bounds that are no options; their values stand in server/openai_types.h.
std::string constant_bounds() {
  const server::RequestBounds b;
  const auto text = [](auto value) { return std::to_string(value); };
  return "Constant bounds of a request: temperature 0..2, top_p (0, 1], min_p 0..1, repetition_penalty (0, 10],\n"
         "presence_penalty and frequency_penalty -2..2, n " + text(b.max_answers) + ", top_logprobs " + text(b.max_top_logprobs) + ", " +
         text(b.max_stops) + " stop strings of " + text(b.max_stop_characters) + " characters, " + text(b.max_logit_bias) +
         " logit_bias entries of -100..100,\n" + text(b.max_tiles_per_image) + " tiles a picture, " + text(b.max_messages) +
         " messages, " + text(b.json_values) + " JSON values, " + text(b.max_token_ids) + " ids of /detokenize, " +
         text(b.max_tokenize_characters) + " characters of\n/tokenize. docs/security.md has all bounds.\n";
}

void settle(ServeOptions* o) {
  server::HttpLimits& limits = o->server.listen.limits;
  o->server.listen.port = static_cast<int>(o->port);
  o->server.listen.threads = static_cast<int>(o->http_threads);
  o->server.workers = static_cast<int>(o->workers);
  o->server.bounds.json_depth = static_cast<int>(o->json_depth);
  o->server.bounds.max_images = o->max_images;
  if (o->max_image) o->server.media.max_bytes = static_cast<size_t>(*o->max_image);
  limits.max_header_bytes = static_cast<size_t>(o->max_header);
  limits.max_connections = static_cast<int>(o->max_connections);
  if (o->max_body) limits.max_body_bytes = static_cast<uint64_t>(*o->max_body);
  if (o->max_unread) limits.max_unread_bytes = static_cast<size_t>(*o->max_unread);
  limits.max_all_bodies_bytes = std::max(limits.max_all_bodies_bytes, limits.max_body_bytes);
}

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

void settle_timeouts(ServeOptions* o) {
  server::HttpLimits& limits = o->server.listen.limits;
  limits.header_timeout = milliseconds(o->header_timeout_s);
  limits.body_timeout = milliseconds(o->body_timeout_s);
  limits.stall_timeout = milliseconds(o->body_timeout_s / 8);
  limits.write_timeout = milliseconds(o->write_timeout_s);
  limits.idle_timeout = milliseconds(o->idle_timeout_s);
  o->server.media.timeout = milliseconds(o->media_timeout_s);
}

server::LogLevel log_level(const std::string& word) {
  static const char* const kWords[] = {"debug", "info", "warning", "error", "off"};
  for (int i = 0; i < 5; ++i)
    if (word == kWords[i]) return static_cast<server::LogLevel>(i);
  return server::LogLevel::kInfo;
}

std::pair<std::unique_ptr<Engine>, Status> open_served_engine(const EngineOptions& options) {
  if (options.model.rfind(kEcho, 0) == 0) {
    auto echo = server::parse_echo_options(options.model.substr(std::char_traits<char>::length(kEcho)));
    if (!echo.ok()) return {nullptr, echo.status()};
    std::this_thread::sleep_for(std::chrono::milliseconds(echo->load_ms));
    echo->on_lost = options.on_lost;
    return {server::make_echo_engine(*echo), Status()};
  }
  return open_engine(options);
}

// Signals are taken by the main thread alone: every other thread inherits this mask.
sigset_t block_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return set;
}

// The model is loaded beside the running server, so that /health answers and /ready tells. SIGUSR1 wakes the
// main thread when loading is over.
struct Loading {
  std::atomic<bool> done{false};
  std::unique_ptr<Engine> engine;
  Status status;
  std::thread thread;

  void start(const EngineOptions& options, pthread_t waiter) {
    thread = std::thread([this, options, waiter] {
      std::tie(engine, status) = open_served_engine(options);
      done = true;
      pthread_kill(waiter, SIGUSR1);
    });
  }
  ~Loading() {
    if (thread.joinable()) thread.join();
  }
};

// A device that failed for good. What failed a process's context stays with the process, so that the server starts itself
// again in its place, once; the variable tells the second start that it is one, and the port of the first.
constexpr const char* kRestarted = "TESSERA_RESTARTED";

struct Loss {
  std::atomic<bool> told{false};
  Status why;

  void tell(const Status& status, pthread_t waiter) {
    why = status;
    told = true;
    pthread_kill(waiter, SIGUSR1);
  }
};

// Runs this program anew with the same arguments; returns only when that is not possible.
void run_again(int port, const sigset_t& blocked) {
  std::ifstream in("/proc/self/cmdline", std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), {});
  std::vector<char*> words;
  for (size_t at = 0; at < text.size(); at += std::strlen(text.data() + at) + 1) words.push_back(text.data() + at);
  words.push_back(nullptr);
  ::setenv(kRestarted, std::to_string(port).c_str(), 1);
  pthread_sigmask(SIG_UNBLOCK, &blocked, nullptr);
  ::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);  // the device's files, too
  ::execv("/proc/self/exe", words.data());
}

int restart(server::Server& server, const Status& why, const sigset_t& set) {
  const std::atomic<bool> patient{false};
  const int port = server.port();
  server.drain_and_stop(std::chrono::seconds(2), patient);  // those that ended hear why
  if (std::getenv(kRestarted)) return fail("serve", why.with_context("a second time"));
  server::log_error("restarting", {{"reason", why.message()}});
  run_again(port, set);
  return fail("serve", why.with_context("it could not be started again"));
}

// Drains; a second SIGTERM or SIGINT ends the waiting.
int drain(server::Server& server, const ServeOptions& options, const sigset_t& set, const char* signal) {
  server::log_info("draining", {{"signal", signal}, {"seconds", options.drain_timeout_s}});
  std::atomic<bool> hurry{false}, over{false};
  std::thread watcher([&] {
    while (!over) {
      const timespec tick{0, 50'000'000};
      const int got = sigtimedwait(&set, nullptr, &tick);
      if (got == SIGTERM || got == SIGINT) hurry = true;
    }
  });
  const bool whole = server.drain_and_stop(
      std::chrono::milliseconds(static_cast<int64_t>(options.drain_timeout_s * 1000)), hurry);
  over = true;
  watcher.join();
  server::log_info("stopped", {{"all_requests_finished", whole ? "true" : "false"}});
  return 0;
}

int serve(ServeOptions options) {
  server::configure_log(log_level(options.log_level), options.log_json);
  const sigset_t set = block_signals();
  if (const char* port = std::getenv(kRestarted); port && options.server.listen.port == 0)
    options.server.listen.port = std::atoi(port);
  auto opened = server::Server::open(options.server);
  if (!opened.ok()) return fail("serve", opened.status());
  server::Server& server = **opened;
  std::printf("tessera serve: http://%s:%d\n", options.server.listen.host.c_str(), server.port());
  std::fflush(stdout);
  server::log_info("listening", {{"host", options.server.listen.host}, {"port", server.port()}});
  Loss loss;
  options.engine.options.on_lost = [&loss, waiter = pthread_self()](const Status& why) { loss.tell(why, waiter); };
  Loading loading;
  loading.start(options.engine.options, pthread_self());
  bool ready = false;
  while (true) {
    int signal = 0;
    if (sigwait(&set, &signal) != 0) continue;
    if (signal == SIGTERM || signal == SIGINT)
      return drain(server, options, set, signal == SIGTERM ? "SIGTERM" : "SIGINT");
    if (signal == SIGHUP) (void)server.reload_keys();
    if (signal == SIGUSR1 && loss.told) return restart(server, loss.why, set);
    if (signal != SIGUSR1 || ready || !loading.done) continue;
    if (!loading.status.ok()) return fail("serve", loading.status);
    ready = true;
    server.set_engine(std::move(loading.engine));
    server::log_info("ready", {{"model", options.engine.options.model}});
  }
}

}  // namespace

int serve_command(std::span<const std::string> args) {
  ArgParser parser(
      "tessera serve", "Serves a model over OpenAI's HTTP API, with a chat page and Prometheus metrics.",
      "mock:echo in place of MODEL serves an engine that repeats what it is sent, for tests of clients.\n"
      "SIGTERM finishes what runs and exits 0; SIGHUP reads the API keys again. A device that fails for good ends what ran with\n"
      "the reason and the server starts itself again; the second time it exits 1.\n" +
          constant_bounds());
  ServeOptions options;
  parser.positional(
      "MODEL", &options.engine.options.model,
      "checkpoint directory, a repository name in the local Hugging Face cache, demo, or mock:echo");
  add_server_options(parser, &options);
  options.engine.add_to(parser);
  if (auto code = parser.parse(args)) return *code;
  if (const Status status = options.engine.finish(); !status.ok()) return fail("serve", status);
  options.server.model_path = options.engine.options.model;
  settle(&options);
  settle_timeouts(&options);
  return serve(std::move(options));
}

}  // namespace tessera::cli
