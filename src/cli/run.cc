#include <cstdio>
#include <string>
#include <vector>

#include "cli/arg_parser.h"
#include "cli/batch.h"
#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "cli/interrupt.h"
#include "cli/session.h"

namespace tessera::cli {
namespace {

struct RunFlags {
  EngineFlags engine;
  SamplingFlags sampling;
  std::vector<std::string> images;
  std::optional<std::string> prompt, input, output;
  bool json = false;
  bool speed = false;
};

void add_flags(ArgParser& parser, RunFlags& flags) {
  parser.positional("MODEL", &flags.engine.options.model,
                    "checkpoint directory, a repository name in the local Hugging Face cache, or demo");
  parser.list("--image", &flags.images, "a picture, in front of the prompt; repeatable");
  parser.option("--prompt", &flags.prompt, "the question; <image> in it is a picture's place");
  parser.stray_belongs_to("--prompt");
  parser.flag("--json", &flags.json, "print one JSON object instead of streaming the text");
  parser.option("--input", &flags.input, "JSONL file of requests (a batch), - for standard input");
  parser.option("--output", &flags.output, "JSONL file of results; an existing one is continued");
  parser.flag("--speed", &flags.speed, "print a line about speed on stderr at the end");
  flags.engine.add_to(parser);
  flags.sampling.add_to(parser);
  flags.sampling.add_logprobs_to(parser);
}

Status check_usage(const RunFlags& flags) {
  if (flags.input && (flags.prompt || !flags.images.empty()))
    return invalid_input("--input already holds the requests; leave out --prompt and --image");
  if (flags.output && !flags.input) return invalid_input("--output needs --input");
  if (!flags.input && !flags.prompt) return invalid_input("nothing to do: give --prompt (and --image), or --input");
  if (flags.speed && flags.input) return invalid_input("--speed is for one answer; a batch says its speed while it runs");
  if (flags.sampling.logprobs && !flags.json && !flags.input)
    return invalid_input("--logprobs needs --json; streamed text has no place for them");
  if (flags.prompt && flags.prompt->empty()) return invalid_input("--prompt is empty; expected a question");
  return {};
}

Result<Request> make_request(const RunFlags& flags) {
  Request request;
  request.image_placeholders = true;
  TESSERA_RETURN_IF_ERROR(flags.sampling.apply(request));
  if (flags.sampling.system) request.messages.push_back({"system", {{*flags.sampling.system, -1}}});
  Message user{"user", {}};
  for (const std::string& path : flags.images) {
    TESSERA_ASSIGN_OR_RETURN(ImageInput image, read_image(path, flags.engine.options));
    user.content.push_back({"", static_cast<int>(request.images.size())});
    request.images.push_back(std::move(image));
  }
  user.content.push_back({*flags.prompt, -1});
  request.messages.push_back(std::move(user));
  return request;
}

int run_one(RunFlags& flags) {
  auto request = make_request(flags);
  if (!request.ok()) return fail("run", request.status());
  auto session = open_session(flags.engine.options);
  if (!session.ok()) return fail("run", session.status());
  if (interrupts() > 0) return 130;  // while it was loading
  auto answer = std::make_shared<Answer>([&](const std::string& text) {
    if (flags.json) return;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  });
  const Status status = run_to_end(*session->engine, *request, answer);
  if (!flags.json && !answer->text().empty()) std::fputc('\n', stdout);
  if (!status.ok()) return fail("run", status);
  const double load_s = session->report.load_s;
  if (flags.json) {
    Json json = answer->to_json(load_s, request->logprobs >= 0);
    json.set("memory", memory_json(*session));
    std::printf("%s\n", json.dump().c_str());
  }
  std::fflush(stdout);  // the answer comes before the line about speed
  if (flags.speed) std::fprintf(stderr, "%s\n", speed_line(*answer, load_s).c_str());
  return answer->finish().reason == FinishReason::kCancelled ? 130 : 0;
}

}  // namespace

int run_command(std::span<const std::string> args) {
  ArgParser parser("tessera run", "Answers one question about pictures, or a batch of requests.",
                   "example: tessera run demo --image examples/07-sign-672x448.png --prompt \"Read the text.\"");
  RunFlags flags;
  add_flags(parser, flags);
  if (auto code = parser.parse(args)) return *code;
  Status status = flags.engine.finish();
  if (status.ok()) status = check_usage(flags);
  if (!status.ok()) return fail("run", status);
  install_interrupt_handler();
  if (!flags.input) return run_one(flags);
  return run_batch({.engine = flags.engine.options,
                    .sampling = flags.sampling,
                    .input = *flags.input,
                    .output = flags.output.value_or("-")});
}

}  // namespace tessera::cli
