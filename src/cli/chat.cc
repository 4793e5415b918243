#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "cli/arg_parser.h"
#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "cli/interrupt.h"
#include "cli/session.h"
#include "core/file.h"
#include "core/json.h"
#include "core/utf8.h"

namespace tessera::cli {
namespace {

constexpr const char* kHelp =
    "/image PATH  put a picture into your next message     /tiles N  at most N tiles for pictures from now on\n"
    "/reset       forget the conversation                  /save F   write the conversation to F as JSON\n"
    "/help        this text                                /quit     leave (so does Ctrl-D)\n"
    "Ctrl-C ends an answer, a second one the program.\n";

// A talk: what has been said, and the pictures of the message that is being written.
class Talk {
 public:
  Talk(Session session, EngineOptions options, SamplingFlags sampling)
      : session_(std::move(session)), options_(std::move(options)), sampling_(std::move(sampling)) {
    reset();
  }

  Status add_image(const std::string& path) {
    TESSERA_ASSIGN_OR_RETURN(ImageInput image, read_image(path, options_));
    add_image(std::move(image));
    return {};
  }

  void add_image(ImageInput image) {
    image.max_dynamic_patch = tiles_;
    pending_.push_back(std::move(image));
  }

  // One turn: the whole conversation goes in, the engine's prefix cache knows the part it has seen.
  Status ask(const std::string& text) {
    Request request;
    TESSERA_RETURN_IF_ERROR(sampling_.apply(request));
    request.image_placeholders = true;
    request.messages = messages_;
    request.images = images_;
    Message user{"user", {}};
    for (const ImageInput& image : pending_) {
      user.content.push_back({"", static_cast<int>(request.images.size())});
      request.images.push_back(image);
    }
    user.content.push_back({text, -1});
    request.messages.push_back(std::move(user));
    auto answer = std::make_shared<Answer>([](const std::string& piece) {
      std::fwrite(piece.data(), 1, piece.size(), stdout);
      std::fflush(stdout);
    });
    const Status status = run_to_end(*session_.engine, request, answer);
    if (!answer->text().empty()) std::fputc('\n', stdout);
    if (!status.ok()) return status;
    messages_ = std::move(request.messages);
    images_ = std::move(request.images);
    pending_.clear();
    if (answer->text().empty())
      messages_.pop_back();  // an interrupted turn without a word leaves no open turn behind
    else
      messages_.push_back({"assistant", {{answer->text(), -1}}});
    return {};
  }

  void reset() {
    messages_.clear();
    images_.clear();
    pending_.clear();
    if (sampling_.system) messages_.push_back({"system", {{*sampling_.system, -1}}});
  }

  Status save(const std::string& path) const {
    Json list = Json::array();
    for (const Message& message : messages_) {
      Json content = Json::array();
      for (const ContentPart& part : message.content) {
        Json item;
        item.set("type", part.image < 0 ? "text" : "image_url");
        if (part.image < 0) {
          item.set("text", part.text);
        } else {
          Json url;
          url.set("url", images_[static_cast<size_t>(part.image)].name);
          item.set("image_url", std::move(url));
        }
        content.push_back(std::move(item));
      }
      Json turn;
      turn.set("role", message.role);
      turn.set("content", std::move(content));
      list.push_back(std::move(turn));
    }
    Json json;
    json.set("messages", std::move(list));
    return write_file(path, json.dump(2) + "\n");
  }

  Status set_tiles(const std::string& text) {
    char* end = nullptr;
    const long tiles = std::strtol(text.c_str(), &end, 10);
    if (text.empty() || *end != '\0' || tiles < 1 || tiles > 128)
      return invalid_input("/tiles is \"" + text + "\"; expected 1 to 128");
    tiles_ = tiles;
    for (ImageInput& image : pending_) image.max_dynamic_patch = tiles_;
    return {};
  }

 private:
  Session session_;
  EngineOptions options_;
  SamplingFlags sampling_;
  std::vector<Message> messages_;
  std::vector<ImageInput> images_;
  std::vector<ImageInput> pending_;
  std::optional<int64_t> tiles_;
};

// A line that starts with a slash. False: leave.
bool obey(Talk& talk, const std::string& line, Status* status) {
  const size_t space = line.find(' ');
  const std::string word = line.substr(0, space);
  std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
  rest.erase(0, rest.find_first_not_of(' '));
  if (word == "/quit" || word == "/exit") return false;
  if (word == "/image") {
    *status = rest.empty() ? invalid_input("/image needs a path") : talk.add_image(rest);
  } else if (word == "/tiles") {
    *status = talk.set_tiles(rest);
  } else if (word == "/save") {
    *status = rest.empty() ? invalid_input("/save needs a path") : talk.save(rest);
  } else if (word == "/reset") {
    talk.reset();
  } else if (word == "/help") {
    std::fputs(kHelp, stdout);
  } else {
    const std::string near = nearest_word(word, {"/image", "/reset", "/tiles", "/save", "/help", "/quit"});
    *status = invalid_input("unknown command " + word + (near.empty() ? "" : "; did you mean " + near + "?"));
  }
  return true;
}

int talk_loop(Talk& talk) {
  const bool terminal = ::isatty(STDIN_FILENO) == 1;
  if (terminal) std::fputs(kHelp, stdout);
  int failures = 0;
  for (std::string line;;) {
    if (terminal) {
      std::fputs("> ", stdout);
      std::fflush(stdout);
    }
    if (!std::getline(std::cin, line)) {
      if (terminal) std::fputc('\n', stdout);  // Ctrl-D has left the prompt's line open
      break;
    }
    if (line.empty()) continue;
    Status status;
    if (first_invalid_utf8(line))
      status = invalid_input("the line is not valid UTF-8");
    else if (line[0] != '/')
      status = talk.ask(line);
    else if (!obey(talk, line, &status))
      break;
    if (!status.ok()) failures = fail("chat", status);
  }
  // A person sees each failure and goes on; a script that pipes its lines in needs the exit code.
  return terminal ? 0 : failures;
}

}  // namespace

int chat_command(std::span<const std::string> args) {
  ArgParser parser("tessera chat", "A talk in the terminal, with history and pictures.", kHelp);
  EngineFlags engine;
  SamplingFlags sampling;
  std::vector<std::string> images;
  parser.positional("MODEL", &engine.options.model,
                    "checkpoint directory, a repository name in the local Hugging Face cache, or demo");
  parser.list("--image", &images, "a picture for the first message; repeatable");
  engine.add_to(parser);
  sampling.add_to(parser);
  if (auto code = parser.parse(args)) return *code;
  if (Status status = engine.finish(); !status.ok()) return fail("chat", status);
  std::vector<ImageInput> first;  // read before the model, so that a wrong path is known at once
  for (const std::string& path : images) {
    auto image = read_image(path, engine.options);
    if (!image.ok()) return fail("chat", image.status());
    first.push_back(std::move(*image));
  }
  install_interrupt_handler();
  auto session = open_session(engine.options);
  if (!session.ok()) return fail("chat", session.status());
  Talk talk(std::move(*session), engine.options, sampling);
  for (ImageInput& image : first) talk.add_image(std::move(image));
  return talk_loop(talk);
}

}  // namespace tessera::cli
